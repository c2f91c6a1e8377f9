// The data: an index, and blocks of answers that are unpacked when a view needs them.

const waiting = new Map(); // block name -> [resolve, reject] of a part that is being loaded
const blocks = new Map(); // block name -> promise of its content
let index = null;

async function unpack(base64) {
  const bytes = Uint8Array.from(atob(base64.trim()), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return JSON.parse(await new Response(stream).text());
}

// Called by the files of a view that is split.
function kvbenchPart(name, base64) {
  const hooks = waiting.get(name);
  waiting.delete(name);
  if (hooks) hooks[0](base64);
}

function loadPart(name) {
  return new Promise((resolve, reject) => {
    waiting.set(name, [resolve, reject]);
    const file = index.parts + "/" + name + ".js";
    const tag = h("script", { src: file });
    tag.onload = () => waiting.has(name) && reject(new Error(file + " is not a part of this view"));
    tag.onerror = () => reject(new Error(file + " is missing: keep the folder next to this page"));
    document.head.append(tag);
  });
}

function block(name) {
  if (!index.answers) return Promise.reject(new Error("This view was written without the answers (--no-answers)."));
  if (!blocks.has(name)) {
    const tag = byId("block-" + name);
    blocks.set(name, tag ? unpack(tag.textContent) : loadPart(name).then(unpack));
  }
  return blocks.get(name);
}

// Derived facts

function prepare() {
  index.tables.forEach((table, t) => {
    table.at = t;
    table.rows.forEach((row, r) => {
      row.at = r;
      row.table = table;
      row.key = t + "." + r;
      const sign = row.mixed ? " †" : "";
      row.title = row.method + (row.words ? ", " + row.words : "") + sign;
      row.brief = row.method + (row.order[0] ? " " + row.short : "") + sign;
      row.search = [row.method, row.budget, row.words, table.name, ...row.hashes].join(" ").toLowerCase();
    });
    table.full = table.rows.find((row) => row.full) || null;
  });
}

const runOf = (row, column) => (row.cells[column] === null ? null : row.table.runs[row.cells[column]]);

// Samples of a column with one record per row: [{id, meta, answers, texts, records: Map(row key -> record)}].
async function samplesOf(table, column, rows) {
  const names = new Set(rows.map((row) => runOf(row, column)?.block).filter((name) => name !== undefined));
  const loaded = new Map();
  await Promise.all([...names].map(async (name) => loaded.set(name, await block(name))));
  const samples = new Map();
  for (const row of rows) {
    const run = runOf(row, column);
    const content = run && loaded.get(run.block);
    for (const sample of content ? content.samples : []) {
      const record = sample.records[run.slot];
      if (!record) continue;
      if (!samples.has(sample.id)) samples.set(sample.id, { ...sample, records: new Map() });
      samples.get(sample.id).kept ??= sample.kept;
      samples.get(sample.id).records.set(row.key, asRecord(record));
    }
  }
  return [...samples.values()].sort((a, b) => (a.id < b.id ? -1 : a.id > b.id ? 1 : 0));
}

function asRecord(fields) {
  const [status, answer, score, kept, span, tokens, finish, ttft, tpot, scores, map] = fields;
  return { status, answer, score, kept, span, tokens, finish, ttft, tpot, scores, map };
}

// Rows whose answers a view shows: the marked ones if there are any, else the filtered ones; the full cache first.
const MOST_ROWS = 150;

function chosenRows(table) {
  const marked = table.rows.filter((row) => state.marked.has(row.key));
  const rows = (marked.length ? marked : sorted(filtered(table))).filter((row) => row !== table.full);
  return { rows: [table.full, ...rows.slice(0, MOST_ROWS)].filter(Boolean), left: Math.max(0, rows.length - MOST_ROWS) };
}
