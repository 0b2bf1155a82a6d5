
// ---- elements ----
const byId = (id) => document.getElementById(id);
function filled(node, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children.map((child) => (child instanceof Node ? child : String(child))));
  return node;
}
const html = (tag, attributes = {}, ...children) => filled(document.createElement(tag), attributes, children);
const svg = (tag, attributes = {}, ...children) =>
  filled(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

function table(head, rows) {
  const cells = (tag, row) => html("tr", {}, ...row.map((cell) => html(tag, {}, cell ?? "–")));
  return html("table", {}, html("thead", {}, cells("th", head)), html("tbody", {}, ...rows.map((row) => cells("td", row))));
}

// Content that is made when it is first opened.
function behind(title, content) {
  const room = html("div"), details = html("details", {}, html("summary", {}, title), room);
  details.addEventListener("toggle", () => { if (details.open && !room.firstChild) room.append(content()); });
  return details;
}

// ---- axes ----
const BOX = { width: 640, left: 62, right: 18, top: 8, bottom: 40 };
const WIDTH = BOX.width - BOX.left - BOX.right;
function ticks(low, high, about) {
  if (!(high > low)) return [low];
  const rough = (high - low) / about, power = 10 ** Math.floor(Math.log10(rough));
  const size = power * [1, 2, 5, 10].find((f) => f * power >= rough);
  const first = Math.ceil(low / size), found = [];
  for (let i = first; i * size <= high + size * 1e-9 && found.length < 40; i++) found.push(i * size);
  return found;
}
function decades(low, high) {
  const found = [];
  for (let e = Math.ceil(Math.log10(low) - 1e-9); e <= Math.log10(high) + 1e-9; e++) found.push(10 ** e);
  return found;
}
// 1, 2 and 5 of each decade, where there are too few decades.
function logTicks(low, high) {
  const tens = decades(low, high);
  if (tens.length > 2) return tens;
  const first = 10 ** Math.floor(Math.log10(low));
  return [1, 10, 100].flatMap((ten) => [1, 2, 5].map((f) => f * ten * first)).filter((v) => v >= low && v <= high);
}
function axes(picture, height, x, y, xTicks, yTicks, xLabel, yLabel) {
  const bottom = height - BOX.bottom, plot = svg("g");
  plot.append(svg("path", { class: "axis", d: `M${BOX.left} ${BOX.top}V${bottom}H${BOX.width - BOX.right}` }));
  for (const t of xTicks)
    plot.append(svg("path", { class: "axis", d: `M${x(t)} ${bottom}v5` }),
      svg("text", { x: x(t), y: bottom + 18, "text-anchor": "middle" }, shown(t)));
  for (const t of yTicks)
    plot.append(svg("path", { class: "axis", d: `M${BOX.left} ${y(t)}h-5` }),
      svg("text", { x: BOX.left - 8, y: y(t) + 4, "text-anchor": "end" }, shown(t)));
  plot.append(svg("text", { x: BOX.left + WIDTH / 2, y: height - 6, "text-anchor": "middle" }, xLabel),
    svg("text", { transform: `translate(13 ${(BOX.top + bottom) / 2}) rotate(-90)`, "text-anchor": "middle" }, yLabel));
  picture.append(plot);
}

// ---- a plot that can be read ----
function plotOf(label, height) {
  const picture = svg("svg", { viewBox: `0 0 ${BOX.width} ${height}`, "aria-hidden": "true" });
  return [html("div", { class: "plot", tabindex: "0", role: "group", "aria-label": `${label}; arrow keys read values` }, picture), picture];
}

// A cursor on (row, bin): pointer and arrow keys move it; say(row, bin) is what is read out, and where(row, bin) [x, y,
// width, height] what is framed.
function readable(plot, picture, rows, bins, at, say, where) {
  const frame = svg("rect", { class: "cursor" }), output = html("output", { "aria-live": "polite" });
  let row = 0, bin = 0;
  picture.append(frame);
  function move(toRow, toBin) {
    row = Math.max(0, Math.min(rows - 1, toRow));
    if (bins(row) === 0) return;
    bin = Math.max(0, Math.min(bins(row) - 1, toBin));
    const [x, y, w, h] = where(row, bin);
    filled(frame, { x, y, width: Math.max(w, 2), height: h, style: "visibility: visible" }, []);
    output.textContent = say(row, bin);
  }
  plot.addEventListener("pointermove", (event) => {
    const box = picture.getBoundingClientRect(), scale = BOX.width / box.width;
    const found = at((event.clientX - box.left) * scale, (event.clientY - box.top) * scale);
    if (found) move(...found);
  });
  plot.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [1, 0], ArrowDown: [-1, 0] }[event.key];
    if (!by) return;
    event.preventDefault();
    if (frame.style.visibility === "visible") move(row + by[0], bin + by[1]);
    else move(0, 0);
  });
  return output;
}

// ---- what can be taken along: the picture by itself, its query ----
const STYLED = ["fill", "fill-opacity", "stroke", "stroke-width", "stroke-dasharray", "opacity", "font-size", "visibility"];
const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const text = (x, y, words, weight = "normal") =>
  svg("text", { x, y, style: `fill: ${style("--ink")}; font-size: 13px; font-weight: ${weight}` }, words);

// The plot with its caption and key above it, [[mark, words]] with a mark of 28 by 12, as one SVG without a style sheet.
function alone(plot, caption, key) {
  const picture = plot.querySelector("svg"), { width, height } = picture.viewBox.baseVal, top = 24 + 18 * key.length;
  const copy = picture.cloneNode(true), nodes = picture.querySelectorAll("*"), canvas = plot.querySelector("canvas");
  copy.querySelectorAll("*").forEach((node, i) => {
    const computed = getComputedStyle(nodes[i]);
    node.setAttribute("style", STYLED.map((name) => `${name}: ${computed.getPropertyValue(name)}`).join("; "));
  });
  copy.querySelector(".cursor").remove();
  const head = [svg("rect", { x: 0, y: -top, width, height: height + top, fill: style("--panel") }), text(8, 16 - top, caption, "bold")];
  key.forEach(([mark, words], i) =>
    head.push(svg("g", { transform: `translate(8 ${26 + 18 * i - top})` }, mark), text(44, 36 + 18 * i - top, words)));
  if (canvas) {
    const area = { x: BOX.left, y: BOX.top, width: WIDTH, height: height - BOX.bottom - BOX.top };
    head.push(svg("rect", { ...area, fill: style("--gap") }),
      svg("image", { ...area, href: canvas.toDataURL(), preserveAspectRatio: "none", style: "image-rendering: pixelated" }));
  }
  copy.prepend(...head);
  return filled(copy, { xmlns: "http://www.w3.org/2000/svg", viewBox: `0 ${-top} ${width} ${height + top}`, width,
    height: height + top, "font-family": "system-ui, sans-serif" }, []);
}
function save(blob, caption, ending) {
  const link = html("a", { href: URL.createObjectURL(blob), download: `${caption.replace(/[^\p{L}\p{N}]+/gu, " ").trim().replaceAll(" ", "-").slice(0, 80)}.${ending}` });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}
function saveSvg(plot, caption, key) {
  save(new Blob([new XMLSerializer().serializeToString(alone(plot, caption, key))], { type: "image/svg+xml" }), caption, "svg");
}
function savePng(plot, caption, key) {
  const copy = alone(plot, caption, key), { width, height } = copy.viewBox.baseVal, image = new Image();
  image.onload = () => {
    const canvas = html("canvas", { width: 2 * width, height: 2 * height });
    canvas.getContext("2d").drawImage(image, 0, 0, 2 * width, 2 * height);
    canvas.toBlob((blob) => save(blob, caption, "png"));
  };
  image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(new XMLSerializer().serializeToString(copy))}`;
}

// A plot with what it says, its buttons, its table and its query. key: see alone; note: a line below the caption.
function figure({ caption, note, plot, output, key, query, rows }) {
  const button = (words, label, act) => {
    const made = html("button", { type: "button", "aria-label": `${label}: ${caption}` }, words);
    made.addEventListener("click", act);
    return made;
  };
  const code = html("code", {}, query), ask = html("details", {}, html("summary", {}, "Query"), html("pre", {}, code));
  const copyQuery = () => {
    ask.open = true;
    getSelection().selectAllChildren(code);
    output.textContent = document.execCommand("copy") ? "The query is copied." : "The query is selected; copy it by the keyboard.";
  };
  return html("figure", {}, html("figcaption", {}, caption), ...(note ? [html("div", { class: "note" }, note)] : []), plot, output,
    html("div", { class: "tools" }, button("SVG", "Save as SVG", () => saveSvg(plot, caption, key())),
      button("PNG", "Save as PNG", () => savePng(plot, caption, key())), button("Copy query", "Copy the query", copyQuery)),
    behind("Table", rows), ask);
}
const legend = (entries) => html("ul", { class: "legend" }, ...entries.map(([colour, words]) => html("li", { style: `--colour: var(${colour})` }, words)));
const nothing = (caption, words) => html("figure", {}, html("figcaption", {}, caption), html("p", {}, words));
const lineMark = (colour, dashes = "none", width = 3) =>
  svg("path", { d: "M0 6h28", style: `stroke: ${colour}; stroke-width: ${width}; stroke-dasharray: ${dashes}; fill: none` });
