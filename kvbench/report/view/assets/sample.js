// One sample: what every variant answered, next to the full cache's answer, with the differences marked.

async function sampleView() {
  const [, t, c, id] = state.path;
  const table = index.tables[t];
  if (!table?.columns[c]) return [nothing("This view has no such table.")];
  const { rows, left } = chosenRows(table);
  const samples = ordered(wanted(await samplesOf(table, Number(c), rows)), rows);
  const at = samples.findIndex((sample) => sample.id === id);
  if (at < 0) return [nothing(`No variant of these has the sample ${id}.`)];
  const sample = samples[at];
  return [
    h("div", { class: "crumbs" }, h("a", { href: address(["samples", t, c]) }, "‹ Samples"), turn("prev", samples[at - 1], "‹ previous"), h("span", { class: "quiet" }, `${at + 1} of ${samples.length}`), turn("next", samples[at + 1], "next ›")),
    h("section", { class: "card", "aria-labelledby": "sample-title" }, sampleHead(table, Number(c), sample), promptPart(table, Number(c), sample, rows)),
    left ? h("p", { class: "note" }, `${rows.length} of ${(rows.length + left).toLocaleString("en")} variants are shown. Filter them, or mark those to compare on the leaderboard (x).`) : null,
    answersPart(table, sample, rows),
  ];
}

function turn(rel, sample, words) {
  if (!sample) return h("span", { class: "quiet off" }, words);
  return h("a", { rel, href: address(["sample", state.path[1], state.path[2], sample.id]) }, words);
}

function sampleHead(table, c, sample) {
  const facts = Object.entries(sample.meta).filter(([, value]) => value !== null && typeof value !== "object");
  const name = table.columns[c].name === table.benchmark ? table.benchmark : `${table.benchmark} · ${table.columns[c].name}`;
  return [
    h("p", { class: "quiet" }, `${name} · ${table.model}`),
    h("h1", { id: "sample-title" }, sample.id),
    h("dl", { class: "facts" }, facts.map(([key, value]) => h("div", {}, h("dt", {}, key), h("dd", {}, value)))),
    h("h2", { class: "small" }, sample.answers.length > 1 ? "Reference answers" : "Reference answer"),
    h("ul", { class: "references" }, sample.answers.length ? sample.answers.map((answer) => h("li", {}, answer)) : h("li", { class: "quiet" }, "none stored")),
  ];
}

// The prompt, folded. A store may hold all of it, a part, or nothing; then the command that prints it is here.
function promptPart(table, c, sample, rows) {
  const whole = sample.kept && !sample.texts?.prompt ? { "compressed part": sample.kept.tokens.join("") } : {};
  const texts = Object.entries({ ...sample.texts, ...whole });
  const stored = texts.map(([key, words]) => [h("h3", {}, key.replace(/_/g, " ")), h("pre", { class: "prompt" }, words)]);
  const command = table.columns[c].prompts + shellWord(sample.id);
  const how = h("div", {}, h("p", {}, texts.length ? "To print the whole prompt as the model read it:" : "The store holds no text of the prompt. To print it as the model read it:"), h("pre", { class: "command" }, command), h("p", { class: "quiet" }, "Add the overrides of model and benchmark that the run had."));
  return [
    h("details", { id: "prompt" }, h("summary", {}, "Prompt ", h("kbd", {}, "p")), stored, how),
    keptTokens(sample, rows),
  ];
}

// A sample id as a word for Hydra and the shell: quoted unless it is plain.
function shellWord(id) {
  if (/^\w[\w.+-]*$/.test(id) && !/^\d+$/.test(id)) return id;
  return `'"${id.replace(/(["\\])/g, "\\$1").replace(/'/g, "'\\''")}"'`;
}

// Groups variants with the same answer: with many variants, most agree.
function answersPart(table, sample, rows) {
  const groups = new Map();
  for (const row of rows) {
    const record = sample.records.get(row.key);
    const key = !record ? "none" : JSON.stringify([record.status, record.answer, record.score]);
    if (!groups.has(key)) groups.set(key, { record, rows: [] });
    groups.get(key).rows.push(row);
  }
  const none = groups.get("none");
  groups.delete("none");
  const full = table.full && sample.records.get(table.full.key);
  const reference = full && full.status === "ok" ? full : null;
  const [first, ...rest] = groups.values();
  if (!first) return nothing("No answer.");
  const cards = [first, ...(reference ? rest.sort((a, b) => (b.record.score ?? -1) - (a.record.score ?? -1)) : rest)];
  return [
    h("h2", { class: "apart" }, plural(groups.size, "different answer"), h("span", { class: "quiet" }, ` of ${plural(rows.length - (none?.rows.length || 0), "variant")}`), reference ? h("span", { class: "key" }, h("ins", {}, "new"), " and ", h("del", {}, "gone"), " against the full cache") : null),
    h("div", { class: "answers" }, cards.map((group) => answerCard(group, reference))),
    none ? h("p", { class: "note" }, `Not run: ${none.rows.map((row) => row.title).join("; ")}`) : null,
  ];
}

const NAMES = 6; // variants of a card that are named before "more"

function answerCard({ record, rows }, reference) {
  const names = rows.map((row) => h("li", { "data-row": row.key, class: row.full ? "full" : null }, h("a", { href: address(["variant", row.table.at, row.at]), "data-item": "" }, breakable(row.brief))));
  const hidden = names.slice(NAMES);
  const rest = hidden.length > 1 ? h("details", { class: "inline" }, h("summary", {}, `${hidden.length} more`), h("ul", { class: "names" }, hidden)) : null;
  return h(
    "article",
    { class: "answer" + (rows.some((row) => row.full) ? " reference" : "") },
    h("header", {}, h("ul", { class: "names" }, rest ? names.slice(0, NAMES) : names), chip(record)),
    rest,
    answerText(record, reference),
    h("p", { class: "quiet measures" }, measures(record, rows.length)),
  );
}

function answerText(record, reference) {
  if (record.status !== "ok") return h("p", { class: "said lost" }, record.answer || record.status);
  const same = !reference || reference === record || reference.answer === record.answer;
  const words = record.answer === "" ? h("span", { class: "quiet" }, "an empty answer") : same ? record.answer : markedText(reference.answer, record.answer);
  return h("p", { class: "said", dir: "auto" }, words);
}

function measures(record, count) {
  if (record.status !== "ok") return null;
  const whole = record.finish === "length" ? ", cut at the limit" : "";
  const parts = [`${plural(record.tokens ?? 0, "token")}${whole}`];
  if (count === 1) {
    if (isNumber(record.kept) && record.span) parts.push(`kept ${number(record.kept, 0)} of ${record.span} (${percent(record.kept / record.span)})`);
    if (isNumber(record.ttft)) parts.push(`TTFT ${seconds(record.ttft)}`);
    if (isNumber(record.tpot)) parts.push(`TPOT ${seconds(record.tpot)}`);
  }
  for (const [name, score] of Object.entries(record.scores || {})) parts.push(`${name} ${number(score)}`);
  return parts.join(" · ");
}
