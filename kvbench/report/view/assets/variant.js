// One variant: its numbers, its dials, where it kept tokens, and its samples.

async function variantView() {
  const [, t, r] = state.path;
  const table = index.tables[t];
  const row = table?.rows[r];
  if (!row) return [nothing("This view has no such variant.")];
  const columns = table.columns.map((column, c) => [c, runOf(row, c)]).filter(([, run]) => run);
  const content = await details(columns[0][1]);
  const isMarked = state.marked.has(row.key);
  const only = [row.key, ...(table.full && row !== table.full ? [table.full.key] : [])].join(",");
  return [
    h("div", { class: "crumbs" }, h("a", { href: address(["board"]) }, "‹ Leaderboard")),
    h(
      "section",
      { class: "card", "aria-labelledby": "variant-title", "data-row": row.key },
      h("p", { class: "quiet" }, table.name),
      h("h1", { id: "variant-title" }, row.title, row.full ? h("span", { class: "badge calm" }, "reference") : null),
      h("div", { class: "actions" }, h("a", { class: "action", "data-item": "", href: address(["samples", t, columns[0][0]], { mark: only, only: "" }) }, row.full ? "Its samples" : "Compare with the full cache, sample by sample"), h("button", { type: "button", class: "quiet-button", "data-mark": row.key, "aria-pressed": String(isMarked), onclick: () => mark(row.key) }, isMarked ? "Marked ×" : "Mark to compare")),
      h("dl", { class: "facts" }, variantFacts(row).map(([key, value, hint]) => h("div", { title: hint }, h("dt", {}, key), h("dd", {}, value)))),
    ),
    table.suite ? datasetsPart(table, row, columns) : null,
    columns.filter(([c, run]) => run.grid).map(([c]) => h("section", { class: "card narrow" }, h("h2", {}, "Needle grid"), scaleBar(), gridOf(row, c, true))),
    content ? keptPart(content) : null,
    content ? settingsPart(row, content) : null,
  ];
}

async function details(run) {
  try {
    return (await block(run.block)).runs[run.slot];
  } catch {
    return null;
  }
}

function variantFacts(row) {
  const diff = row.diff;
  const interval = diff && isNumber(diff.low) ? ` [${signed(diff.low)}, ${signed(diff.high)}]` : diff ? ` (${diff.reason})` : "";
  return [
    [row.table.lead, number(row.score) + (row.missing ? ` ${row.missing}` : "")],
    diff && ["Δ full cache", signed(diff.mean) + interval, row.table.interval],
    ["samples", `${row.n} of ${row.of}`],
    row.oom && ["out of memory", row.oom],
    row.failed && ["failed", row.failed],
    ["kept per KV head", `${number(row.kept, 0)} tokens, ${percent(row.keptShare)}`],
    ["KV bytes", `${number(row.heldMiB, 2)} MiB, ${percent(row.heldShare)}`],
    isNumber(row.ttft) && ["TTFT", seconds(row.ttft), "The mean over samples. Rows that share a prefill share its time."],
    isNumber(row.tpot) && ["TPOT", seconds(row.tpot), "The mean over samples, in the batch that the row ran in"],
    row.hardware && ["hardware", row.hardware],
    row.mixed && ["†", "not all samples were computed with the same versions and hardware"],
    row.status && row.status !== "done" && ["status", row.status],
    ...Object.entries(row.others).map(([name, score]) => [name, number(score)]),
  ].filter(Boolean);
}

function datasetsPart(table, row, columns) {
  const bounds = row.diffs.filter(Boolean).flatMap(({ low, mean, high }) => [low, mean, high].filter(isNumber));
  const reach = [Math.min(0, ...bounds), Math.max(0, ...bounds)];
  const lines = columns.map(([c, run]) => {
    return h("tr", {}, h("th", { scope: "row", class: "name" }, h("a", { "data-item": "", href: address(["samples", table.at, c]) }, table.columns[c].name)), h("td", { class: "mid name" }, table.columns[c].category), h("td", {}, scoreCell({ score: run.score })), h("td", {}, row.full ? null : differenceCell(row.diffs[c], reach)), h("td", { class: "mid" }, `${run.n}/${run.of}`));
  });
  const head = h("tr", {}, ["Dataset", "Category", "Score", "Δ full cache", "Samples"].map((words, i) => h("th", { scope: "col", class: ["name", "mid name", "", "", "mid"][i] }, words)));
  return h("section", { class: "card" }, h("h2", {}, "Datasets"), h("div", { class: "scroll" }, h("table", { class: "board" }, h("thead", {}, head), h("tbody", {}, lines))));
}

// Where the budget went: the share of tokens kept per layer and KV head, the mean over samples.
function keptPart(content) {
  const layers = content.layers;
  if (!layers?.length) return null;
  const heads = Math.max(...layers.map((layer) => layer.length));
  const all = layers.flat();
  const most = Math.max(...all, 1e-9);
  const [w, ht] = [Math.max(6, Math.min(26, Math.floor(700 / layers.length))), Math.max(6, Math.min(22, Math.floor(220 / heads)))];
  const marks = layers.flatMap((layer, l) => layer.map((share, i) => svg("rect", { x: l * w, y: i * ht, width: w - 1, height: ht - 1, style: { fill: "var(--accent)", "fill-opacity": (0.06 + (0.94 * share) / most).toFixed(3) } }, svg("title", {}, `layer ${l}, head ${i}: ${percent(share)}`))));
  const ticks = layers.map((_, l) => (l % 5 ? null : svg("text", { x: l * w + w / 2, y: heads * ht + 13, "text-anchor": "middle" }, l)));
  const words = `Share of tokens kept by layer and KV head, from ${percent(Math.min(...all))} to ${percent(most)}`;
  return h("section", { class: "card" }, h("h2", {}, "Where the tokens were kept"), h("p", { class: "quiet" }, `${words}. Layers from left to right, KV heads from top to bottom.`), svg("svg", { class: "chart kept", viewBox: `0 0 ${layers.length * w} ${heads * ht + 18}`, style: { "max-width": layers.length * w + "px" }, role: "img", "aria-label": words }, marks, ticks));
}

function settingsPart(row, content) {
  const lines = [["run folder", content.path], ["identity", content.hash], ["seed", content.seed], ["kernel", content.kernel], ["cache", content.cache], ["computed with", content.ran]].filter(([, value]) => value !== "");
  return h("section", { class: "card" }, h("h2", {}, "Settings"), h("dl", { class: "lines" }, lines.map(([key, value]) => [h("dt", {}, key), h("dd", {}, h("code", {}, value))])), h("details", {}, h("summary", {}, "Dials and parts"), h("pre", {}, JSON.stringify(content.method, null, 2))), h("details", {}, h("summary", {}, "Versions and hardware"), h("pre", {}, JSON.stringify({ versions: content.versions, hardware: content.hardware, continued_with: content.continuedWith }, null, 2))));
}
