// What a browser knows of a page, for test_report.py. Each function returns plain data.

// Colours of any syntax as [r, g, b, a], by painting them.
const painter = Object.assign(document.createElement("canvas"), { width: 1, height: 1 }).getContext(
  "2d", { willReadFrequently: true });
function rgba(color) {
  painter.clearRect(0, 0, 1, 1);
  painter.fillStyle = color;
  painter.fillRect(0, 0, 1, 1);
  const [r, g, b, a] = painter.getImageData(0, 0, 1, 1).data;
  return [r, g, b, a / 255];
}

function over(top, below) {
  return [0, 1, 2].map((i) => top[i] * top[3] + below[i] * (1 - top[3])).concat(1);
}

// Relative luminance and contrast as WCAG 2 has them.
function luminance(color) {
  const linear = color.slice(0, 3).map((c) => c / 255)
    .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
  return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
}

function ratio(one, other) {
  const [low, high] = [luminance(one), luminance(other)].sort((a, b) => a - b);
  return (high + 0.05) / (low + 0.05);
}

function background(element) {
  const layers = [];
  for (let at = element; at; at = at.parentElement)
    layers.push(rgba(getComputedStyle(at).backgroundColor));
  return layers.reverse().reduce((below, top) => over(top, below), [255, 255, 255, 1]);
}

function visible(element) {
  const box = element.getBoundingClientRect();
  return element.checkVisibility() && box.width > 1 && box.height > 1;
}

function contrastOf(element, field) {
  const behind = background(element);
  const color = over(rgba(getComputedStyle(element)[field]), behind);
  return { text: element.textContent.slice(0, 40), class: element.getAttribute("class"),
    ratio: ratio(color, behind) };
}

function contrasts() {
  const hasText = (e) => [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
  return [...document.body.querySelectorAll("*")].filter((e) => hasText(e) && visible(e))
    .map((e) => contrastOf(e, e.closest("svg") ? "fill" : "color"));
}

function markContrasts() {
  const marks = [...document.querySelectorAll("svg .mark:not(.seed) use")].filter(visible);
  const lines = [...document.querySelectorAll("svg .series:not(.faint) path")];
  return marks.map((e) => contrastOf(e, "fill")).concat(lines.map((e) => contrastOf(e, "stroke")));
}

function shown(selector) {
  return [...document.querySelectorAll(selector)].map(visible);
}

function pageLuminance() {
  return luminance(background(document.body));
}

function descriptions() {
  return [...document.querySelectorAll("svg")].map((svg) => ({ id: svg.id,
    text: document.getElementById(svg.getAttribute("aria-describedby"))?.textContent ?? "" }));
}

function structure() {
  const ids = [...document.querySelectorAll("[id]")].map((e) => e.id);
  const references = ["aria-labelledby", "aria-describedby"].flatMap((name) =>
    [...document.querySelectorAll(`[${name}]`)].flatMap((e) => e.getAttribute(name).split(" ")));
  return {
    lang: document.documentElement.lang,
    title: document.title,
    landmarks: [...document.body.children].map((e) => e.localName),
    levels: [...document.querySelectorAll("h1, h2, h3, h4, h5, h6")].map((e) => +e.localName[1]),
    repeatedIds: ids.filter((id, place) => ids.indexOf(id) !== place),
    danglingReferences: references.filter((id) => !document.getElementById(id)),
    headersWithoutScope: [...document.querySelectorAll("th:not([scope])")].map((e) => e.innerText),
    tablesWithoutCaption: [...document.querySelectorAll("table")]
      .filter((e) => !e.caption?.textContent).map((e) => e.innerText),
  };
}

function chartTextOutside() {
  const found = [];
  for (const svg of document.querySelectorAll("svg")) {
    const box = svg.getBoundingClientRect();
    for (const text of svg.querySelectorAll("text")) {
      const t = text.getBoundingClientRect();
      if (t.left < box.left - 1 || t.right > box.right + 1
          || t.top < box.top - 1 || t.bottom > box.bottom + 1)
        found.push(`${svg.id}: ${text.textContent}`);
    }
  }
  return found;
}

// Tables wider than the page, in no frame that scrolls or that is wider than the page itself.
function tablesOutside() {
  const width = document.documentElement.clientWidth;
  return [...document.querySelectorAll("table")].filter(visible).filter((table) => {
    const frame = table.closest(".scroll") ?? table;
    return frame.getBoundingClientRect().right > width + 1;
  }).map((table) => table.caption.textContent);
}

function focusable() {
  return [...document.querySelectorAll("a[href], summary, [tabindex='0']")].filter(visible).length;
}

function recordFocus() {
  window.focusRecord = [];
  document.addEventListener("focusin", (event) => window.focusRecord.push(focused(event.target)));
}

function focused(element) {
  const style = getComputedStyle(element);
  const shown = style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2
    && ratio(rgba(style.outlineColor), background(element.parentElement)) >= 3;
  return { place: [...document.querySelectorAll("*")].indexOf(element), outlined: shown,
    name: element.getAttribute("aria-label") ?? element.innerText };
}

function scrolls(element) {
  return element.scrollWidth > element.clientWidth + 1
    && ["auto", "scroll"].includes(getComputedStyle(element).overflowX);
}

function scrollersOutOfReach() {
  return [...document.body.querySelectorAll("*")].filter((e) => visible(e) && scrolls(e))
    .filter((e) => e.tabIndex < 0).map((e) => `${e.localName} in ${e.closest("section")?.id}`);
}

// On paper nothing scrolls: what is wider than the page or than its own box is lost.
function cutOff() {
  const width = document.documentElement.clientWidth;
  return [...document.body.querySelectorAll("*")].filter(visible)
    .filter((e) => !e.closest("clipPath, defs, .spoken"))
    .filter((e) => !e.closest("[clip-path]") && e.getBoundingClientRect().right > width + 1
      || scrolls(e))
    .map((e) => `${e.localName}.${e.getAttribute("class")}: ${e.textContent.slice(0, 40)}`);
}
