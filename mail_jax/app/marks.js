// Lets visitors mark instances on the photo by a click, a box or a stroke, with a pointer or keys.
// props.value has one mark per line, in fractions of the photo: see mail_jax/app/marks.py.
const SVG = "http://www.w3.org/2000/svg";
const NAMES = { point: "Click", box: "Box", stroke: "Stroke" };
const HINTS = {
  point: "Click on something in the photo; click on it again for a larger area. "
    + "Keys: arrows move the cross, Enter marks.",
  box: "Drag a box around something. Keys: Enter sets a corner, arrows move, Enter sets the other.",
  stroke: "Draw along something, or around it. Keys: Enter begins, arrows draw, Enter ends.",
};
// Clicks this close are on the same point, and shorter drags are none; fractions of the photo.
const SAME = 0.025, SHORT = 0.012, STEP = 0.02;

const tools = element.querySelector(".tools");
const hint = element.querySelector("#marks-hint");
const chips = element.querySelector(".chips");
const status = element.querySelector("[role=status]");
let photo = null;
let marks = [], areas = "", drawn = null, cross = null, usesKeys = false;

const svg = document.createElementNS(SVG, "svg");
svg.setAttribute("class", "marking");
svg.setAttribute("tabindex", "0");
svg.setAttribute("role", "application");
svg.setAttribute("aria-label", "Photo: mark an instance");
svg.setAttribute("aria-describedby", "marks-hint");

const tool = () => element.querySelector("input:checked").value;
const image = () => photo && photo.querySelector(".image-frame img");
const within = (x) => Math.min(1, Math.max(0, x));
const say = (text) => { status.textContent = text; };

function parse(text) {
  return (text || "").split("\n").filter(Boolean).map((line) => {
    const words = line.split(" ");
    const larger = words.at(-1).startsWith("+") ? Number(words.pop().slice(1)) : 0;
    return { kind: words[0], points: words.slice(1).map((p) => p.split(",").map(Number)), larger };
  });
}

function format(mark) {
  const points = mark.points.map((p) => p.map((x) => Number(within(x).toFixed(3))).join(","));
  return [mark.kind, ...points, ...(mark.larger ? [`+${mark.larger}`] : [])].join(" ");
}

// The photo is shown whole in its frame, with margins on two sides.
function frame() {
  const shown = image(), box = shown.getBoundingClientRect(), all = svg.getBoundingClientRect();
  const scale = Math.min(box.width / shown.naturalWidth, box.height / shown.naturalHeight);
  const width = shown.naturalWidth * scale, height = shown.naturalHeight * scale;
  return {
    left: box.left - all.left + (box.width - width) / 2,
    top: box.top - all.top + (box.height - height) / 2,
    width, height, all,
  };
}

function place(event) {
  const { left, top, width, height, all } = frame();
  return [within((event.clientX - all.left - left) / width),
    within((event.clientY - all.top - top) / height)];
}

function add(name, attributes, text) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text) node.textContent = text;
  svg.append(node);
}

function paint() {
  svg.replaceChildren();
  if (!image() || !image().naturalWidth) return;
  const { left, top, width, height } = frame();
  const at = ([x, y]) => [left + x * width, top + y * height];
  if (areas) add("image", { href: areas, x: left, y: top, width, height });
  for (const mark of drawn ? [...marks, drawn] : marks) {
    const points = mark.points.map(at);
    if (mark.kind === "box" && points.length > 1) {
      const [[x, y], [u, v]] = points;
      const corner = { x: Math.min(x, u), y: Math.min(y, v) };
      add("rect", { ...corner, width: Math.abs(u - x), height: Math.abs(v - y), class: "line" });
    } else if (mark.kind === "stroke") {
      add("polyline", { points: points.join(" "), class: "line" });
    }
  }
  marks.forEach((mark, k) => {
    const [x, y] = at(mark.points[0]);
    add("circle", { cx: x, cy: y, r: 10, class: "number" });
    add("text", { x, y, class: "number" }, String(k + 1));
  });
  if (usesKeys && cross) {
    const [x, y] = at(cross), d = `M${x - 14} ${y}h28M${x} ${y - 14}v28`;
    add("path", { d, class: "cross dark" });
    add("path", { d, class: "cross" });
  }
}

function list() {
  chips.replaceChildren(...marks.map((mark, k) => {
    const item = document.createElement("li"), button = document.createElement("button");
    button.type = "button";
    button.textContent = `${k + 1} ${NAMES[mark.kind]} ✕`;
    button.setAttribute("aria-label", `Remove mark ${k + 1}, ${NAMES[mark.kind].toLowerCase()}`);
    button.addEventListener("click", () => remove(k));
    item.append(button);
    return item;
  }));
}

function changed(text) {
  props.value = marks.map(format).join("\n");
  if (!marks.length) areas = "";
  show();
  trigger("drawn");
  say(text);
}

function show() {
  list();
  hint.textContent = HINTS[tool()];
  paint();
}

function remove(k) {
  marks.splice(k, 1);
  changed(`Mark ${k + 1} removed, ${marks.length} left`);
  (chips.querySelectorAll("button")[Math.min(k, marks.length - 1)] || svg).focus();
}

function finish() {
  const mark = drawn;
  drawn = null;
  const spread = [0, 1].map((axis) => {
    const along = mark.points.map((p) => p[axis]);
    return Math.max(...along) - Math.min(...along);
  });
  if (mark.kind === "box" && Math.min(...spread) < SHORT) {
    paint();
    return tell("That box is too small: drag from one corner to the opposite one.");
  }
  if (mark.kind === "point") {
    const same = marks.find((m) => m.kind === "point"
      && Math.hypot(m.points[0][0] - mark.points[0][0], m.points[0][1] - mark.points[0][1]) < SAME);
    if (same) {
      same.larger = (same.larger + 1) % 4;
      return changed("The area of this mark has another size");
    }
  }
  if (marks.length >= props.most) {
    paint();
    return tell(`At most ${props.most} instances can be marked: remove one of them first.`);
  }
  const most = props.points;
  if (mark.points.length > most) {
    const step = (mark.points.length - 1) / (most - 1);
    mark.points = Array.from({ length: most }, (_, k) => mark.points[Math.round(k * step)]);
  }
  marks.push(mark);
  changed(`Mark ${marks.length} added`);
}

function tell(text) {
  hint.textContent = text;
  say(text);
}

function start(point) {
  drawn = { kind: tool(), points: tool() === "box" ? [point, point] : [point], larger: 0 };
}

function extend(point) {
  if (drawn.kind === "box") drawn.points[1] = point;
  else if (drawn.kind === "point") drawn.points[0] = point;
  else {
    const last = drawn.points.at(-1);
    if (Math.hypot(last[0] - point[0], last[1] - point[1]) > SHORT / 2) drawn.points.push(point);
  }
}

svg.addEventListener("pointerdown", (event) => {
  if (event.button || !event.isPrimary || !image()) return;
  usesKeys = false;
  svg.setPointerCapture(event.pointerId);
  start(place(event));
  paint();
});
svg.addEventListener("pointermove", (event) => {
  if (!drawn || !event.isPrimary || usesKeys) return;
  if (drawn.kind !== "point") extend(place(event));
  paint();
});
svg.addEventListener("pointerup", (event) => {
  if (!drawn || !event.isPrimary || usesKeys) return;
  finish();
});
// The browser scrolls.
svg.addEventListener("pointercancel", () => { drawn = null; paint(); });

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
svg.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || !image()) return;
  cross = cross || [0.5, 0.5];
  const arrow = ARROWS[event.key];
  if (arrow) {
    const step = event.shiftKey ? 5 * STEP : STEP;
    cross = [within(cross[0] + step * arrow[0]), within(cross[1] + step * arrow[1])];
    if (drawn) extend(cross);
    say(cross.map((x, k) => `${Math.round(100 * x)} % from ${k ? "the top" : "the left"}`).join(", "));
  } else if (event.key === "Enter" || event.key === " ") {
    if (drawn) finish();
    else {
      start(cross);
      if (tool() === "point") finish();
      else say("Begun: move with the arrows, then press Enter");
    }
  } else if (event.key === "Escape" && drawn) {
    drawn = null;
    say("Cancelled");
  } else if ((event.key === "Delete" || event.key === "Backspace") && marks.length) {
    marks.pop();
    changed(`The last mark is removed, ${marks.length} left`);
  } else {
    return;
  }
  usesKeys = true;
  event.preventDefault();
  paint();
});
svg.addEventListener("focus", () => {
  if (!svg.matches(":focus-visible")) return;
  usesKeys = true;
  cross = cross || [0.5, 0.5];
  paint();
});
svg.addEventListener("blur", () => { usesKeys = false; drawn = null; paint(); });

for (const input of element.querySelectorAll("input")) {
  input.addEventListener("change", () => {
    svg.dataset.tool = tool();
    drawn = null;
    show();
  });
}

// Gradio replaces what is inside the field when a photo comes or goes.
function follow() {
  const shown = image();
  tools.hidden = !shown;
  if (!shown) return svg.remove();
  if (svg.parentNode !== photo) photo.append(svg);
  if (!shown.complete || !shown.naturalWidth) shown.addEventListener("load", paint, { once: true });
  paint();
}
svg.dataset.tool = tool();

// Gradio loads its fields one by one.
function when(selector, use) {
  const node = document.querySelector(selector);
  if (node) use(node);
  else setTimeout(() => when(selector, use), 50);
}

// Gradio's labels of these say something else than what is written there.
const MISNAMED = "button.upload-container[aria-label], .instances button[aria-label^=Thumbnail]";
const rename = () => document.querySelectorAll(MISNAMED)
  .forEach((button) => button.removeAttribute("aria-label"));
new MutationObserver(rename).observe(document.body, { childList: true, subtree: true });
rename();

when("#photo", (node) => {
  photo = node;
  const all = { childList: true, subtree: true, attributes: true, attributeFilter: ["src"] };
  new MutationObserver((records) => {
    if (records.some((record) => !svg.contains(record.target))) follow();
  }).observe(photo, all);
  new ResizeObserver(paint).observe(photo);
  follow();
});

watch("value", () => {
  marks = parse(props.value);
  drawn = null;
  areas = "";
  show();
  if (marks.length) trigger("drawn");
});
document.addEventListener("areas", (event) => {
  areas = marks.length ? event.detail : "";
  paint();
});

// Enter asks; Shift+Enter begins another line, and so does Enter while a word is being composed.
when("#text", (text) => text.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.isComposing) return;
  event.stopPropagation();
  if (event.shiftKey) return;
  event.preventDefault();
  document.querySelector("#find").click();
}, true));
// Gradio submits by Shift+Enter.
when("#text", (text) => text.addEventListener("keypress", (event) => {
  if (event.key === "Enter") event.stopPropagation();
}, true));
show();
