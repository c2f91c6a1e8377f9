// The list of samples of a table: how the variants fare on each, with those they disagree about first.

const LISTED = 100; // samples that are shown before "more"
const ORDERS = [["", "most different first"], ["hard", "hardest first"], ["id", "by name"]];

async function samplesView() {
  const tables = shownTables().map(([table]) => table);
  const table = index.tables[state.path[1] ?? tables[0]?.at];
  if (!table) return [nothing("No table matches these filters.")];
  const c = Math.min(Number(state.path[2] || 0), table.columns.length - 1);
  const { rows, left } = chosenRows(table);
  const samples = await samplesOf(table, c, rows);
  const list = ordered(wanted(samples), rows);
  const note = left ? h("p", { class: "note" }, `${rows.length} of ${(rows.length + left).toLocaleString("en")} variants are shown. Filter them, or mark those to compare on the leaderboard (x).`) : null;
  return [
    h("div", { class: "choices" }, tables.length > 1 || index.tables.length > 1 ? pick("Table", index.tables.map((other) => [String(other.at), `${other.benchmark} · ${other.model} · ${other.mark}`]), String(table.at), (value) => (location.hash = address(["samples", value], { only: "", mark: "" }))) : null, table.columns.length > 1 ? pick("Dataset", table.columns.map((column, i) => [String(i), column.name]), String(c), (value) => (location.hash = address(["samples", table.at, value], { only: "" }))) : null, pick("Order", ORDERS, state.order, (value) => change({ order: value }, "#pick-order")), onlyNote()),
    h("section", { class: "card", "aria-label": table.name }, heading(table, list.length, "sample"), note, list.length ? sampleTable(table, c, rows, list) : nothing("No sample of these variants.")),
  ];
}

function pick(label, options, value, go) {
  const select = h("select", { id: "pick-" + label.toLowerCase(), onchange: (event) => go(event.target.value) }, options.map(([key, words]) => h("option", { value: key }, words)));
  select.value = value;
  return h("label", {}, h("span", {}, label), select);
}

function onlyNote() {
  const [, length, depth] = /^at:(\d+):(\d+)$/.exec(state.only) || [];
  if (!length) return null;
  return h("button", { type: "button", class: "quiet-button", onclick: () => change({ only: "" }, "#pick-order") }, `${length} tokens, depth ${depth}% ×`);
}

function wanted(samples) {
  const [, length, depth] = /^at:(\d+):(\d+)$/.exec(state.only) || [];
  return length ? samples.filter(({ meta }) => meta.length === +length && meta.depth === +depth) : samples;
}

const scoresOf = (sample, rows) => rows.map((row) => sample.records.get(row.key)?.score).filter(isNumber);
const mean = (values) => (values.length ? values.reduce((sum, value) => sum + value, 0) / values.length : null);

// How far apart the variants are: the mean distance to the full cache, or the spread where there is none.
function disagreement(sample, rows) {
  const full = rows[0]?.full ? sample.records.get(rows[0].key)?.score : undefined;
  const scores = scoresOf(sample, rows);
  const centre = isNumber(full) ? full : mean(scores);
  return mean(scores.map((score) => Math.abs(score - centre))) ?? -1;
}

function ordered(samples, rows) {
  const worth = { hard: (sample) => -(mean(scoresOf(sample, rows)) ?? 101), "": (sample) => disagreement(sample, rows) }[state.order];
  if (!worth) return samples;
  const values = new Map(samples.map((sample) => [sample, worth(sample)]));
  return [...samples].sort((a, b) => values.get(b) - values.get(a));
}

function sampleTable(table, c, rows, list) {
  const few = rows.length <= 4;
  const body = h("tbody");
  const more = h("button", { type: "button", class: "more" });
  let drawn = 0;
  const draw = () => {
    body.append(...list.slice(drawn, drawn + LISTED).map((sample) => sampleRow(table, c, rows, sample, few)));
    drawn = Math.min(list.length, drawn + LISTED);
    more.hidden = drawn >= list.length;
    more.textContent = `Show more (${list.length - drawn} left)`;
  };
  more.addEventListener("click", draw);
  draw();
  const heads = few ? rows.map((row) => h("th", { scope: "col" }, row.brief)) : [h("th", { scope: "col", class: "mid" }, "Mean"), h("th", { scope: "col", class: "name" }, `${rows.length} variants, ${rows[0].full ? "the full cache first" : "in the leaderboard's order"}`)];
  return [h("div", { class: "scroll" }, h("table", { class: "board samples" }, h("thead", {}, h("tr", {}, h("th", { scope: "col", class: "name" }, "Sample"), h("th", { scope: "col", class: "wide name" }, "Reference"), heads)), body)), more];
}

function sampleRow(table, c, rows, sample, few) {
  const link = h("a", { href: address(["sample", table.at, c, sample.id]), "data-item": "" }, breakable(sample.id));
  const scores = scoresOf(sample, rows);
  const cells = few ? rows.map((row) => h("td", {}, chip(sample.records.get(row.key)))) : [h("td", { class: "mid" }, number(mean(scores), 0)), h("td", { class: "name" }, strip(sample, rows))];
  const reference = sample.answers.join(" · ");
  return h("tr", {}, h("th", { scope: "row", class: "name" }, link), h("td", { class: "wide name short", title: reference }, reference.slice(0, 80)), cells);
}

function chip(record) {
  if (!record) return h("span", { class: "quiet" }, "–");
  if (record.status !== "ok") return h("span", { class: "chip lost" }, record.status);
  if (!isNumber(record.score)) return h("span", { class: "quiet" }, "no score");
  const colour = scoreColour(record.score);
  return h("span", { class: "chip", style: { background: rgb(colour), color: inkOn(colour) } }, Math.round(record.score));
}

// One mark per variant, in the order of the rows.
function strip(sample, rows) {
  const width = Math.min(18, Math.max(4, Math.floor(640 / rows.length)));
  const marks = rows.map((row, i) => {
    const record = sample.records.get(row.key);
    const known = record && record.status === "ok" && isNumber(record.score);
    return svg("rect", { x: i * width, y: 0, width: width - 1, height: 16, class: known ? null : record ? "lost" : "missing", style: known ? { fill: rgb(scoreColour(record.score)) } : {} }, svg("title", {}, `${row.title}: ${known ? number(record.score, 0) : record ? record.status : "not run"}`));
  });
  const scores = scoresOf(sample, rows);
  const words = `${scores.filter((score) => score >= 50).length} of ${rows.length} variants score 50 or more`;
  return svg("svg", { class: "strip", viewBox: `0 0 ${rows.length * width} 16`, width: rows.length * width, height: 16, role: "img", preserveAspectRatio: "none", "aria-label": words }, marks);
}
