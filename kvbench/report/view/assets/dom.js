// Elements and texts. All that comes from the store passes through text(): text nodes only, never markup.

const SVG = "http://www.w3.org/2000/svg";
const byId = (id) => document.getElementById(id);

// Characters that a reader cannot see, or that change the order of others, shown as what they are.
const UNSEEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]|[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/g;

function text(value) {
  return String(value).replace(UNSEEN, (c) => "\\u" + c.charCodeAt(0).toString(16).padStart(4, "0"));
}

function fill(node, attributes, children) {
  for (const [key, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (key === "style") for (const [name, to] of Object.entries(value)) node.style.setProperty(name, to);
    else node.setAttribute(key, value === true ? "" : text(value));
  }
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    node.append(child instanceof Node ? child : document.createTextNode(text(child)));
  }
  return node;
}

function h(name, attributes, ...children) {
  return fill(document.createElement(name), attributes, children);
}

function svg(name, attributes, ...children) {
  return fill(document.createElementNS(SVG, name), attributes, children);
}

// A name that may break after its underscores and signs, not between letters.
function breakable(name) {
  return String(name).split(/(?<=[_+,-])/).flatMap((piece, i) => (i ? [document.createElement("wbr"), piece] : [piece]));
}

function show(node, ...children) {
  node.replaceChildren(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return node;
}

function say(words) {
  byId("live").textContent = text(words);
}

// Numbers

const isNumber = (value) => typeof value === "number";
const number = (value, digits = 1) => (isNumber(value) ? value.toFixed(digits) : "–");
const signed = (value) => (isNumber(value) ? (value < 0 ? "−" : "+") + Math.abs(value).toFixed(1) : "–");
const percent = (share) => (isNumber(share) ? (100 * share).toFixed(share < 0.0995 ? 1 : 0) + "%" : "–");
const plural = (count, word) => count.toLocaleString("en") + " " + word + (count === 1 ? "" : "s");

function seconds(value) {
  if (!isNumber(value)) return "–";
  return value < 1 ? (1000 * value).toFixed(value < 0.1 ? 1 : 0) + " ms" : value.toFixed(2) + " s";
}

// Colours of scores: orange for 0, sand for 50, blue for 100. The two ends differ for every kind of colour vision.
const SCALE = [[178, 78, 40], [229, 165, 107], [241, 229, 203], [120, 172, 186], [24, 98, 128]];

function scoreColour(score) {
  const at = (Math.min(100, Math.max(0, score)) / 100) * (SCALE.length - 1);
  const low = Math.min(Math.floor(at), SCALE.length - 2);
  return SCALE[low].map((from, i) => Math.round(from + (at - low) * (SCALE[low + 1][i] - from)));
}

const rgb = (colour) => `rgb(${colour.join(",")})`;

function inkOn(colour) {
  const linear = colour.map((c) => (c / 255 <= 0.03928 ? c / 3294.6 : ((c / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] > 0.2 ? "#1d1e1a" : "#ffffff";
}
