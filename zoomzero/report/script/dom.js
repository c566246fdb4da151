// Elements and texts. Everything from outside enters the page as a text node, through make() and draw().

const SVG = "http://www.w3.org/2000/svg";
const data = JSON.parse(document.getElementById("data").textContent);

// make("p.soft", {title: "x"}, "text", otherElement, null) -> element
function make(kind, attributes, ...children) {
  const [tag, ...classes] = kind.split(".");
  const element = document.createElement(tag || "div");
  if (classes.length) element.className = classes.join(" ");
  return filled(element, attributes, children);
}

// The same for SVG.
function draw(kind, attributes, ...children) {
  const [tag, ...classes] = kind.split(".");
  const element = document.createElementNS(SVG, tag);
  if (classes.length) element.setAttribute("class", classes.join(" "));
  return filled(element, attributes, children);
}

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name.startsWith("--")) element.style.setProperty(name, value);
    else if (name === "style") Object.assign(element.style, value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

const isNumber = (value) => typeof value === "number" && Number.isFinite(value);
const percent = (value) => (isNumber(value) ? `${(100 * value).toFixed(1)} %` : "–");
const fixed = (value, digits = 2) => (isNumber(value) ? value.toFixed(digits) : "–");

function short(value) {
  if (!isNumber(value)) return "–";
  const size = Math.abs(value);
  for (const [limit, sign] of [[1e15, "P"], [1e12, "T"], [1e9, "G"], [1e6, "M"], [1e4, "k"]]) {
    const unit = limit === 1e4 ? 1e3 : limit;
    if (size >= limit) return `${Number((value / unit).toPrecision(3))} ${sign}`;
  }
  return String(Number(value.toPrecision(3)));
}

// Seconds as m:ss, with tenths where there are some and hours where there are any.
function clock(seconds) {
  if (!isNumber(seconds)) return "–";
  const tenths = Math.round(seconds * 10);
  const [minutes, rest] = [Math.floor(tenths / 600), tenths % 600];
  const tail = String(Math.floor(rest / 10)).padStart(2, "0") + (rest % 10 ? `.${rest % 10}` : "");
  return minutes < 60 ? `${minutes}:${tail}` : `${Math.floor(minutes / 60)}:${String(minutes % 60).padStart(2, "0")}:${tail}`;
}

const spanText = (spans) => spans.map(([start, end]) => `${clock(start)}–${clock(end)}`).join(", ");
const letterOf = (place) => String.fromCharCode(65 + place);
const plural = (count, word) => `${count.toLocaleString("en")} ${word}${count === 1 ? "" : "s"}`;

// The colour of a run or series: --c0 to --c3.
const colour = (place) => `var(--c${place % 4})`;
