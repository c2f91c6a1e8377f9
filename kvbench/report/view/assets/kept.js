// Kept tokens over the text of the prompt, where runs stored them (save.kept=true): which words survived.

// A sample's `kept` has the texts of its tokens, and ranges of layers; a record's `map` has a string per range (all
// layers first) with a digit 0 to f per token, the share of KV heads that keep it.
function keptTokens(sample, rows) {
  const mapped = rows.filter((row) => sample.records.get(row.key)?.map);
  if (!sample.kept || !mapped.length) return null;
  const body = h("p", { class: "prompt kept-text", dir: "auto" });
  const variants = pick("Variant", mapped.map((row) => [row.key, row.title]), (mapped.find((row) => !row.full) || mapped[0]).key, () => drawMap());
  const ranges = sample.kept.layers.map(([first, last], i) => [String(i), i ? (first === last ? `layer ${first}` : `layers ${first} to ${last}`) : "all layers"]);
  const layers = pick("Layers", ranges, "0", () => drawMap());
  const note = h("span", { class: "quiet" });
  const drawMap = () => {
    const [row, range] = [mapped.find((row) => row.key === variants.querySelector("select").value), Number(layers.querySelector("select").value)];
    const shares = [...sample.records.get(row.key).map[range]].map((digit) => parseInt(digit, 16) / 15);
    show(body, sample.kept.tokens.map((token, i) => keptToken(token, shares[i])));
    note.textContent = `${percent(mean(shares))} kept`;
  };
  drawMap();
  return h("details", { id: "kept" }, h("summary", {}, "Kept tokens"), h("div", { class: "choices" }, variants, layers, note, h("span", { class: "quiet" }, "the stronger the colour, the more KV heads keep a token")), body);
}

function keptToken(token, share) {
  const style = share ? { background: `color-mix(in srgb, var(--accent) ${Math.round(8 + 32 * share)}%, transparent)` } : {};
  return h("span", { class: share ? null : "dropped", title: `kept by ${percent(share)} of the heads`, style }, token);
}
