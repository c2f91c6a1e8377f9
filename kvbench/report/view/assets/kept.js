// Kept tokens over the text of the prompt, where a run stored which they are.

function keptMap(row, content) {
  return h("p", {}, `${row.title}: ${content}`);
}
