// Differences between two answers, by words with the space before them; in scripts without spaces, by characters.

const PIECES = /\s*(?:[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}\p{Script=Thai}]|[\p{L}\p{N}_]+|\S)|\s+/gu;
const LARGEST = 1.5e6; // cells of the table of common subsequences

// Returns [["same" | "gone" | "new", text], ...] that turn `before` into `after`.
function differences(before, after) {
  const a = before.match(PIECES) || [];
  const b = after.match(PIECES) || [];
  let head = 0;
  while (head < a.length && head < b.length && a[head] === b[head]) head++;
  let tail = 0;
  while (tail < Math.min(a.length, b.length) - head && a[a.length - 1 - tail] === b[b.length - 1 - tail]) tail++;
  const middle = common(a.slice(head, a.length - tail), b.slice(head, b.length - tail));
  return joined([
    ["same", a.slice(0, head).join("")],
    ...middle,
    ["same", tail ? a.slice(-tail).join("") : ""],
  ]);
}

function common(a, b) {
  if (!a.length || !b.length || a.length * b.length > LARGEST) return [["gone", a.join("")], ["new", b.join("")]];
  const width = b.length + 1;
  const lengths = new Uint16Array((a.length + 1) * width);
  for (let i = a.length - 1; i >= 0; i--) {
    for (let j = b.length - 1; j >= 0; j--) {
      const below = lengths[(i + 1) * width + j];
      const right = lengths[i * width + j + 1];
      lengths[i * width + j] = a[i] === b[j] ? lengths[(i + 1) * width + j + 1] + 1 : Math.max(below, right);
    }
  }
  const steps = [];
  let i = 0;
  let j = 0;
  while (i < a.length || j < b.length) {
    if (i < a.length && j < b.length && a[i] === b[j]) steps.push(["same", a[i++]]), j++;
    else if (i < a.length && (j === b.length || lengths[(i + 1) * width + j] >= lengths[i * width + j + 1])) steps.push(["gone", a[i++]]);
    else steps.push(["new", b[j++]]);
  }
  return steps;
}

// Joins neighbours of one kind.
function joined(steps) {
  const result = [];
  for (const [kind, piece] of steps) {
    if (!piece) continue;
    const last = result[result.length - 1];
    if (last && last[0] === kind) last[1] += piece;
    else result.push([kind, piece]);
  }
  return result;
}

function markedText(before, after) {
  return differences(before, after).map(([kind, piece]) => {
    if (kind === "same") return piece;
    return kind === "gone" ? h("del", {}, visible(piece)) : h("ins", {}, visible(piece));
  });
}

// A change of spaces alone would be invisible.
const visible = (piece) => (piece.trim() ? piece : piece.replace(/\n/g, "⏎\n").replace(/ /g, "␣").replace(/\t/g, "⇥"));
