// Budget curves: score against budget or against bytes, a line per method.

const DASHES = ["", "7 4", "2 3"];
const AXES = [["budget", "by budget"], ["bytes", "by KV bytes"]];
const MOST_LINES = 30; // methods that get a line of their own: as many as there are colours with dashes
const KINDS = { 1: "Budget, % of tokens", 2: "Budget, % of bytes", 3: "Budget, tokens per KV head" };

function curves() {
  const tables = shownTables().filter(([table, rows]) => rows.some((row) => row !== table.full && isNumber(row.score)));
  const buttons = AXES.map(([key, words]) => h("button", { type: "button", "data-x": key, "aria-pressed": String((state.x || "budget") === key), onclick: () => change({ x: key === "budget" ? "" : key }, `[data-x=${key}]`) }, words));
  if (!tables.length) return [nothing("No curve to draw: no variant of these has a score.")];
  const parts = tables.map(([table, rows]) => h("section", { class: "card", "aria-label": table.name }, heading(table, rows.length), panels(table, rows)));
  return [h("div", { class: "switch", role: "group", "aria-label": "Horizontal axis" }, buttons), parts];
}

function panels(table, rows) {
  const byBytes = state.x === "bytes";
  const groups = new Map();
  for (const row of rows) {
    if (row === table.full || !isNumber(row.score)) continue;
    const kind = byBytes ? 4 : row.order[0];
    const x = byBytes ? row.heldShare : row.order[1];
    if (!isNumber(x) || (!byBytes && kind === 0)) continue;
    if (!groups.has(kind)) groups.set(kind, []);
    groups.get(kind).push({ row, x: kind === 3 ? x : 100 * x, y: row.score });
  }
  const { methods, others } = chosenMethods([...groups.values()].flat());
  const level = byBytes ? [] : rows.filter((row) => row !== table.full && row.order[0] === 0 && isNumber(row.score));
  const flat = state.all ? level : [...level].sort((a, b) => b.score - a.score).slice(0, MOST_LINES);
  const styles = stylesOf(table, methods);
  const figure = h("div", { class: "panels" + (methods.length > 12 ? " busy" : "") });
  const names = [...groups.keys()].sort();
  if (!names.length && level.length > flat.length) return [fewerNote(flat.length, level.length - flat.length), levels(table, flat)];
  if (!names.length) return flat.length ? levels(table, flat) : nothing("These variants have no budget. Their KV bytes are the other axis.");
  const whole = Math.min(byId("main").clientWidth - (innerWidth > 700 ? 90 : 54), 1240);
  const room = names.length > 1 && whole > 860 ? Math.floor(whole / 2) - 14 : whole;
  for (const kind of names) figure.append(panel(table, groups.get(kind), kind, methods, styles, flat, room));
  const left = others + level.length - flat.length;
  return [left ? fewerNote(methods.length + flat.length, left) : null, figure, legend(table, methods, styles, flat, figure)];
}

// Colour and dashes of the methods shown, by name. A method has those of its place in the whole table, methods with a budget first,
// so that it looks the same by budget, by bytes and under a filter. Of later methods, each has a place that no shown one has.
function stylesOf(table, shown) {
  const budgeted = table.rows.filter((row) => row.order[0] !== 0).map((row) => row.method);
  const names = [...new Set([...budgeted.sort(), ...table.rows.filter((row) => row !== table.full).map((row) => row.method).sort()])];
  const taken = new Set();
  const styles = new Map();
  for (const method of [...shown].sort((a, b) => names.indexOf(a) - names.indexOf(b))) {
    let place = names.indexOf(method);
    if (place >= MOST_LINES) place = [...Array(MOST_LINES).keys()].find((free) => !taken.has(free)) ?? place % MOST_LINES;
    taken.add(place);
    styles.set(method, { colour: `var(--c${place % 10})`, dash: DASHES[Math.floor(place / 10) % 3] });
  }
  return styles;
}

// The methods that have a line of their own, by name, and how many have none: marked methods first, then the highest mean scores.
function chosenMethods(points) {
  const scores = new Map();
  for (const { row, y } of points) {
    if (!scores.has(row.method)) scores.set(row.method, { marked: false, values: [] });
    const entry = scores.get(row.method);
    entry.values.push(y);
    entry.marked ||= state.marked.has(row.key);
  }
  const names = [...scores.keys()].sort();
  if (state.all || names.length <= MOST_LINES) return { methods: names, others: 0 };
  const worth = new Map([...scores].map(([name, { marked, values }]) => [name, mean(values) + (marked ? 1e6 : 0)]));
  const methods = [...names].sort((a, b) => worth.get(b) - worth.get(a)).slice(0, MOST_LINES).sort();
  return { methods, others: names.length - methods.length };
}

function fewerNote(shown, others) {
  const words = `${shown} of ${(shown + others).toLocaleString("en")} methods have a line of their own: marked ones, then those with the highest mean score. The lines of the others are grey. Search, filters and marks (x, on the leaderboard) choose methods.`;
  return h("p", { class: "note" }, words, " ", h("button", { type: "button", class: "quiet-button", id: "all-lines", onclick: () => change({ all: "1" }, "#main") }, "Draw all"));
}

// Methods without a budget alone: a bar each.
function levels(table, rows) {
  return h("ul", { class: "levels" }, rows.map((row) => h("li", {}, h("a", { href: address(["variant", table.at, row.at]), "data-item": "" }, row.title), scoreCell(row))));
}

function panel(table, points, kind, methods, styles, flat, room) {
  const [width, height] = [room, room < 600 ? 300 : 400];
  const named = width > 600 && methods.length <= 16;
  const [left, right, top, bottom] = [58, named ? 150 : 16, 12, 44];
  const xs = [...new Set(points.map((point) => point.x))].sort((a, b) => a - b);
  const ys = [...points.map((point) => point.y), ...flat.map((row) => row.score), table.full?.score].filter(isNumber);
  const [low, high, stepY] = nice(Math.min(0, ...ys), Math.max(...ys));
  const [first, last] = [Math.log(Math.max(xs[0], 1e-6)), Math.log(Math.max(xs[xs.length - 1], 1e-6))];
  const x = (value) => left + 16 + (last > first ? (Math.log(Math.max(value, 1e-6)) - first) / (last - first) : 0.5) * (width - left - right - 32);
  const y = (value) => height - bottom - ((value - low) / (high - low)) * (height - top - bottom);
  const grid = [];
  for (let value = low; value <= high + 1e-9; value += stepY) {
    grid.push(svg("line", { class: "gridline", x1: left, x2: width - right, y1: y(value), y2: y(value) }), svg("text", { x: left - 7, y: y(value) + 4, "text-anchor": "end" }, +value.toFixed(1)));
  }
  let lastTick = -Infinity;
  for (const value of kind === 4 ? rounds(xs[0], xs[xs.length - 1]) : xs) {
    if (x(value) - lastTick < 34) continue;
    lastTick = x(value);
    grid.push(svg("line", { class: "tick", x1: x(value), x2: x(value), y1: height - bottom, y2: height - bottom + 4 }), svg("text", { x: x(value), y: height - bottom + 17, "text-anchor": "middle" }, +value.toPrecision(3)));
  }
  const aside = (method) => (methods.length > 1 ? (methods.indexOf(method) / (methods.length - 1) - 0.5) * Math.min(24, 8 * (methods.length - 1)) : 0);
  const title = kind === 4 ? "Bytes held, % of the full cache" : KINDS[kind];
  grid.push(svg("text", { class: "axis", x: (left + width - right) / 2, y: height - 6, "text-anchor": "middle" }, title));
  const score = table.suite ? table.lead : `${table.lead} × 100`;
  grid.push(svg("text", { class: "axis", transform: `translate(12 ${(top + height - bottom) / 2}) rotate(-90)`, "text-anchor": "middle" }, score));
  const levelLine = (row, name, dash) => svg("line", { class: name, "data-method": row.method, x1: left, x2: width - right, y1: y(row.score), y2: y(row.score), "stroke-dasharray": dash }, svg("title", {}, `${row.title}: ${number(row.score)}`));
  const full = table.full && isNumber(table.full.score) ? levelLine(table.full, "full", "6 4") : null;
  const byMethod = new Map(methods.map((method) => [method, []]));
  const rest = new Map();
  for (const point of [...points].sort((a, b) => a.x - b.x)) {
    const { method } = point.row;
    if (byMethod.has(method)) byMethod.get(method).push(point);
    else rest.set(method, [...(rest.get(method) || []), point]);
  }
  const background = rest.size ? svg("path", { class: "others", d: [...rest.values()].map((own) => lineOf(own, x, y)).join("") }) : null;
  const lines = methods.map((method) => {
    const own = byMethod.get(method);
    if (!own.length) return null;
    const { colour, dash } = styles.get(method);
    const at = (value) => x(value) + aside(method); // side by side: of equal lines, each can be seen
    const path = lineOf(own, at, y);
    return svg(
      "g",
      { class: "series", "data-method": method, style: { stroke: colour, fill: colour } },
      svg("path", { d: path, fill: "none", "stroke-dasharray": dash }),
      own.map((point) => svg("a", { href: address(["variant", table.at, point.row.at]), "aria-label": `${point.row.title}: ${number(point.y)}`, tabindex: -1 }, svg("circle", { class: "reachable", cx: at(point.x), cy: y(point.y), r: 9 }), svg("circle", { cx: at(point.x), cy: y(point.y), r: 3.4 }), svg("title", {}, `${point.row.title}: ${number(point.y)}, ${percent(point.row.heldShare)} of the bytes`))),
    );
  });
  const words = `${table.lead} against ${title.toLowerCase()}, ${plural(methods.length, "method")}; the leaderboard has the numbers`;
  return svg("svg", { class: "chart", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": words, style: { "max-width": width + "px" } }, grid, background, full, flat.map((row) => levelLine(row, "level", "1.5 4")), lines, named ? endLabels(points, methods, styles, (point) => x(point.x) + aside(point.row.method), y, width - right) : null);
}

const lineOf = (points, x, y) => points.map((point, i) => `${i ? "L" : "M"}${x(point.x).toFixed(1)} ${y(point.y).toFixed(1)}`).join("");

// The name of each line at its right end; names that would overlap move down.
function endLabels(points, methods, styles, x, y, edge) {
  const ends = methods.map((method) => {
    const own = points.filter((point) => point.row.method === method).sort((a, b) => b.x - a.x)[0];
    return own && { method, at: y(own.y), from: x(own) };
  });
  let lowest = -Infinity;
  return ends
    .filter(Boolean)
    .sort((a, b) => a.at - b.at)
    .map(({ method, at, from }) => {
      lowest = Math.max(at, lowest + 15);
      const style = { stroke: styles.get(method).colour, fill: styles.get(method).colour };
      const lead = svg("path", { class: "lead", d: `M${from + 6} ${at}L${edge + 6} ${lowest}`, style });
      return svg("g", { class: "series", "data-method": method }, lead, svg("text", { class: "end", x: edge + 10, y: lowest + 4, style: { fill: style.fill } }, method.length > 20 ? method.slice(0, 19) + "…" : method));
    });
}

// Limits and step of an axis that holds `low` to `high`.
function nice(low, high) {
  const span = Math.max(high - low, 2);
  const step = [0.5, 1, 2, 5, 10, 20, 25].find((size) => span / size <= 6) || 25;
  const top = Math.ceil(high / step) * step;
  return [Math.max(0, Math.floor(low / step) * step), high <= 100 ? Math.min(100, top) : top, step];
}

function rounds(low, high) {
  return [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 40, 100, 200, 400].filter((value) => value >= low * 0.95 && value <= high * 1.05);
}

// Buttons that bring out a line while they have the pointer or the focus, and keep it when they are pressed.
function legend(table, methods, styles, flat, figure) {
  const bright = (method) => {
    const kept = [...list.querySelectorAll("[aria-pressed=true]")].map((button) => button.dataset.name);
    const on = new Set(method ? [method, ...kept] : kept);
    figure.classList.toggle("chosen", on.size > 0);
    figure.querySelectorAll("[data-method]").forEach((node) => node.classList.toggle("on", on.has(node.dataset.method)));
  };
  const entry = (method, sample) =>
    h("button", { type: "button", "data-name": method, "data-item": "", "aria-pressed": "false", onmouseenter: () => bright(method), onmouseleave: () => bright(), onfocus: () => bright(method), onblur: () => bright(), onclick: (event) => {
      const button = event.currentTarget;
      button.setAttribute("aria-pressed", String(button.getAttribute("aria-pressed") !== "true"));
      bright(method);
    } }, sample, method);
  const stroke = (attributes) => svg("svg", { width: 26, height: 10, "aria-hidden": "true" }, svg("line", { x1: 1, x2: 25, y1: 5, y2: 5, ...attributes }));
  const list = h(
    "div",
    { class: "legend", role: "group", "aria-label": "Methods" },
    table.full ? entry(table.full.method, stroke({ class: "full", "stroke-dasharray": "6 4" })) : null,
    methods.map((method) => entry(method, stroke({ style: { stroke: styles.get(method).colour }, "stroke-width": 2.5, "stroke-dasharray": styles.get(method).dash }))),
    flat.map((row) => entry(row.method, stroke({ class: "level", "stroke-dasharray": "1.5 4" }))),
  );
  return list;
}
