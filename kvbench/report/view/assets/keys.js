// The keyboard: everything that a mouse can do.

const KEYS = [
  ["j  k", "next and previous entry"],
  ["Enter", "open the entry"],
  ["Esc", "back, or close"],
  ["/", "search"],
  ["x", "mark the variant for a comparison"],
  ["1 2 3 4", "leaderboard, curves, needle grids, samples"],
  ["h  l", "previous and next sample"],
  ["p", "fold and unfold the prompt"],
  ["← ↑ ↓ →", "move inside a needle grid"],
  ["t", "light or dark"],
  ["?", "this help"],
];

function help() {
  const dialog = byId("help");
  const rows = KEYS.map(([key, words]) => [h("dt", {}, key.split(/\s+/).map((name) => h("kbd", {}, name))), h("dd", {}, words)]);
  show(
    dialog,
    h("h2", { id: "help-title" }, "Keys"),
    h("dl", {}, rows),
    h("p", { class: "quiet" }, "Mark variants with x to compare them sample by sample. Links keep filters, order and marks."),
    h("form", { method: "dialog" }, h("button", { class: "tool" }, "Close")),
  );
  dialog.showModal();
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || byId("help").open) return;
  const field = event.target.closest?.("input[type=search], select, textarea");
  if (field) {
    if (event.key === "Escape") {
      field.blur();
      if (field.id === "q" && field.value) change({ q: "" });
      event.preventDefault();
    } else if (event.key === "Enter" && field.id === "q") {
      event.preventDefault();
      field.blur();
      step(0, true);
    }
    return;
  }
  const act = {
    j: () => step(1),
    k: () => step(-1),
    "/": () => byId("q").focus(),
    "?": help,
    t: () => theme(),
    x: markHere,
    p: () => byId("prompt")?.toggleAttribute("open"),
    h: () => document.querySelector("[rel=prev]")?.click(),
    l: () => document.querySelector("[rel=next]")?.click(),
    Escape: back,
  }[event.key];
  const view = VIEWS[Number(event.key) - 1];
  if (act) act();
  else if (view && /^[1-4]$/.test(event.key)) location.hash = address([view[0]]);
  else return;
  event.preventDefault();
}

// Moves the focus among the entries of the view; past the last one, more are drawn.
function step(by, first = false) {
  let items = [...document.querySelectorAll("#main [data-item]")];
  const at = items.indexOf(document.activeElement.closest?.("[data-item]") || document.activeElement.closest?.("tr")?.querySelector("[data-item]"));
  if (by > 0 && at === items.length - 1) {
    const more = [...document.querySelectorAll("#main .more")].find((button) => !button.hidden);
    if (more) {
      more.click();
      items = [...document.querySelectorAll("#main [data-item]")];
    }
  }
  const next = first || at < 0 ? items[0] : items[Math.min(items.length - 1, Math.max(0, at + by))];
  next?.focus();
  next?.scrollIntoView({ block: "nearest" });
}

function markHere() {
  const key = document.activeElement.closest?.("[data-row]")?.dataset.row;
  if (!key) return;
  mark(key);
  document.querySelector(`[data-row="${key}"] [data-item]`)?.focus({ preventScroll: true });
}

function back() {
  const [name, t, c] = state.path;
  if (name === "sample") location.hash = address(["samples", t, c]);
  else if (name !== "board") location.hash = address(["board"]);
  else document.activeElement.blur?.();
}
