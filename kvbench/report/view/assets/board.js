// The leaderboard: a table per group of comparable runs, with filters and sorting.

const PAGE = 100; // rows that are shown before "more"

function filtered(table) {
  const { benchmark, model, method, budget, q } = state.filters;
  if ((benchmark && table.benchmark !== benchmark) || (model && table.model !== model)) return [];
  const words = q.toLowerCase().split(/\s+/).filter(Boolean);
  return table.rows.filter(
    (row) =>
      (!method || row.label === method) &&
      (!budget || row.budget === budget) &&
      words.every((word) => row.search.includes(word)),
  );
}

function shownTables() {
  return index.tables.map((table) => [table, filtered(table)]).filter(([, rows]) => rows.length);
}

// Columns: key, label, the value to sort by, the cell, and a class. Columns of class "wide" leave in a narrow window.
function columnsOf(table) {
  const scores = table.columns.map((column, c) => ({
    key: "c" + c,
    label: column.name,
    hint: column.category ? `${column.category}, ${column.metric}` : column.metric,
    value: (row) => runOf(row, c)?.score ?? null,
    cell: (row) => datasetCell(runOf(row, c)),
    kind: "wide",
  }));
  const some = (key) => table.rows.some((row) => isNumber(row[key]));
  return [
    { key: "method", label: "Method", value: (row) => row.method.toLowerCase(), cell: methodCell, kind: "name" },
    { key: "budget", label: "Budget", value: (row) => row.order[0] * 1e15 + row.order[1], cell: (row) => row.short },
    { key: "score", label: table.lead, value: (row) => row.score, cell: scoreCell, hint: "100 × the mean score" },
    { key: "delta", label: "Δ full cache", value: (row) => row.diff?.mean ?? null, cell: deltaCell, hint: table.interval },
    { key: "n", label: "Samples", value: (row) => row.n, cell: countCell, kind: "mid" },
    { key: "kept", label: "Kept", value: (row) => row.keptShare, cell: (row) => percent(row.keptShare), kind: "mid", hint: "Tokens kept per KV head, as a share of those compressed" },
    { key: "bytes", label: "KV bytes", value: (row) => row.heldShare, cell: (row) => percent(row.heldShare), kind: "mid", hint: "Bytes held for the kept tokens: keys and values and what a store or a decode policy must know of each, as a share of the full cache's" },
    some("ttft") && { key: "ttft", label: "TTFT", value: (row) => row.ttft, cell: (row) => seconds(row.ttft), kind: "wide", hint: "Time to the first token" },
    some("tpot") && { key: "tpot", label: "TPOT", value: (row) => row.tpot, cell: (row) => seconds(row.tpot), kind: "wide", hint: "Time per output token" },
    new Set(table.rows.map((row) => row.hardware)).size > 1 && { key: "hardware", label: "Hardware", value: (row) => row.hardware, cell: (row) => row.hardware || "–", kind: "wide", hint: "Times of different hardware do not compare" },
    ...(table.suite ? scores : []),
  ].filter(Boolean);
}

function sorted(rows, table = rows[0]?.table) {
  if (!table) return [];
  const down = state.sort.startsWith("-");
  const key = state.sort.replace(/^-/, "");
  const column = columnsOf(table).find((column) => column.key === key);
  if (!column) return rows;
  const values = new Map(rows.map((row) => [row, column.value(row)]));
  return [...rows].sort((a, b) => {
    const [x, y] = [values.get(a), values.get(b)];
    if (x === null || y === null) return (x === null) - (y === null) || a.at - b.at;
    return (x < y ? -1 : x > y ? 1 : 0) * (down ? -1 : 1) || a.at - b.at;
  });
}

function board() {
  const tables = shownTables();
  if (!tables.length) return [nothing("No run matches these filters.")];
  const runs = tables.reduce((sum, [, rows]) => sum + rows.length, 0);
  say(`${plural(runs, "variant")} in ${plural(tables.length, "table")}`);
  return tables.map(([table, rows]) => section(table, rows));
}

function section(table, rows) {
  return h("section", { class: "card", "aria-label": table.name }, heading(table, rows.length), boardTable(table, rows));
}

function heading(table, count, what = "variant") {
  return h(
    "header",
    { class: "heading" },
    h("h2", {}, h("span", {}, table.benchmark), h("span", { class: "model" }, table.model)),
    h("p", { class: "quiet" }, `${plural(count, what)} · ${table.details} · `, protocolNote(table)),
  );
}

function protocolNote(table) {
  const title = "What the runs of this table share. Runs that differ in it stand in another table.";
  return h("details", { class: "inline" }, h("summary", { title }, "protocol ", h("code", {}, table.mark)), h("pre", {}, JSON.stringify(table.setting, null, 2)));
}

function boardTable(table, rows) {
  const columns = columnsOf(table);
  const ordered = sorted(rows).filter((row) => row !== table.full);
  const all = [table.full, ...ordered].filter(Boolean);
  const body = h("tbody");
  const more = h("button", { type: "button", class: "more" });
  let drawn = 0;
  const draw = () => {
    body.append(...all.slice(drawn, drawn + PAGE).map((row) => boardRow(row, columns)));
    drawn = Math.min(all.length, drawn + PAGE);
    more.hidden = drawn >= all.length;
    more.textContent = `Show more (${(all.length - drawn).toLocaleString("en")} left)`;
  };
  more.addEventListener("click", draw);
  draw();
  const head = h("tr", {}, h("th", { class: "mark", scope: "col" }, h("span", { class: "hidden" }, "Compare")), columns.map(headCell));
  return [h("div", { class: "scroll", tabindex: "-1" }, h("table", { class: "board" }, h("thead", {}, head), body)), more];
}

function headCell(column) {
  const key = state.sort.replace(/^-/, "");
  const way = key !== column.key ? null : state.sort.startsWith("-") ? "descending" : "ascending";
  // Numbers start with the largest, names with the first.
  const next = way === "descending" ? column.key : way === "ascending" ? "-" + column.key : (["method", "budget", "ttft", "tpot", "bytes", "kept"].includes(column.key) ? "" : "-") + column.key;
  const arrow = h("span", { "aria-hidden": "true", class: "arrow" }, way === "descending" ? "↓" : way === "ascending" ? "↑" : "");
  return h(
    "th",
    { scope: "col", class: column.kind, "aria-sort": way || "none", title: column.hint },
    h("button", { type: "button", "data-sort": column.key, onclick: () => change({ sort: next }, `[data-sort="${column.key}"]`) }, column.kind === "name" ? [column.label, arrow] : [arrow, column.label]),
  );
}

function boardRow(row, columns) {
  const box = h("input", { type: "checkbox", "aria-label": "Compare " + row.title, "data-mark": row.key, onchange: () => mark(row.key) });
  box.checked = state.marked.has(row.key);
  const cells = columns.map((column, i) => {
    const name = i ? "td" : "th";
    return h(name, { class: column.kind || null, scope: i ? null : "row" }, column.cell(row));
  });
  return h("tr", { class: row.full ? "reference" : null, "data-row": row.key }, h("td", { class: "mark" }, box), cells);
}

function methodCell(row) {
  const lost = ["failed", "preempted"].includes(row.status) ? h("span", { class: "badge" }, row.status) : null;
  const note = row.full ? h("span", { class: "badge calm" }, "reference") : null;
  return [h("a", { href: address(["variant", row.table.at, row.at]), "data-item": "" }, breakable(row.method + (row.mixed ? " †" : ""))), note, lost];
}

function scoreCell(row) {
  if (!isNumber(row.score)) return "–";
  const part = row.missing ? h("span", { class: "quiet", title: "Datasets that this average is of" }, ` ${row.missing}`) : null;
  return h("span", { class: "score" }, h("span", { class: "meter", "aria-hidden": "true" }, h("i", { style: { width: row.score + "%" } })), row.best ? star() : null, h("b", {}, number(row.score)), part);
}

const star = () => h("span", { class: "star", role: "img", "aria-label": "best", title: "Significantly better than all other variants under its budget (Holm-corrected)" }, "★");

function datasetCell(run) {
  if (!run) return h("span", { class: "quiet" }, "–");
  const whole = run.n === run.of || !isNumber(run.score);
  return [number(run.score), whole ? null : h("span", { class: "quiet", title: `${run.n} of ${run.of} samples have an answer` }, "*")];
}

function countCell(row) {
  const done = row.n + row.oom + row.failed;
  const lost = [row.oom && `${row.oom} oom`, row.failed && `${row.failed} failed`].filter(Boolean);
  return [done === row.of ? `${done}` : `${done}/${row.of}`, lost.map((words) => h("span", { class: "badge" }, words))];
}

// The paired difference: the mean, and its interval as a line with zero marked. Grey where the interval holds zero.
function deltaCell(row) {
  if (row.full) return null;
  return differenceCell(row.diff, row.table.reach);
}

function differenceCell(diff, reach) {
  if (!diff) return h("span", { class: "quiet", title: "No sample in common with a full cache of the same protocol" }, "–");
  const words = isNumber(diff.low) ? `95% interval ${signed(diff.low)} to ${signed(diff.high)}, ${plural(diff.n, "sample")}` : `no interval: ${diff.reason}`;
  const kind = !diff.significant ? "unclear" : diff.mean < 0 ? "worse" : "better";
  return h("span", { class: "delta " + kind, title: words }, whisker(diff, reach), h("b", {}, signed(diff.mean)), h("span", { class: "hidden" }, ` (${words})`));
}

function whisker({ low, high, mean }, [from, to]) {
  const width = 84;
  const x = (value) => 3 + ((value - from) / (to - from || 1)) * (width - 6);
  const line = isNumber(low) ? svg("line", { class: "interval", x1: x(low), x2: x(high), y1: 8, y2: 8 }) : null;
  return svg(
    "svg",
    { class: "whisker", viewBox: `0 0 ${width} 16`, width, height: 16, "aria-hidden": "true" },
    svg("line", { class: "zero", x1: x(0), x2: x(0), y1: 1, y2: 15 }),
    line,
    svg("circle", { cx: x(mean), cy: 8, r: 3 }),
  );
}

const nothing = (words) => h("p", { class: "nothing" }, words);
