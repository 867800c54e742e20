// Three planes of each panel, blended here from byte codes and colour tables.
//
// From Python: "scene" (what is shown; a buffer of 256 x RGBA for each layer), "planes" (where
// the cursor is; a buffer of codes for each panel, axis and layer) and "problem" (a text).
// To Python: "ready", "cursor", "opacity", "box", "stroke", "fill", "undo" and "redo". Each is
// answered by "planes", and a cursor waits for the answer to the one before.

const TALLEST_PX = 420;
const WHEEL_PX = 50; // a slice
const TOOLS = { look: "Look", brush: "Brush", eraser: "Eraser", threshold: "Threshold brush" };
const KEYS = {
  ArrowRight: [0, 1],
  ArrowLeft: [0, -1],
  ArrowUp: [1, 1],
  ArrowDown: [1, -1],
  PageUp: [2, 1],
  PageDown: [2, -1],
};

const css = ([red, green, blue]) => `rgb(${red}, ${green}, ${blue})`;
const bytes = (view) => new Uint8Array(view.buffer, view.byteOffset, view.byteLength);
const clip = (value, size) => Math.min(Math.max(value, 0), size - 1);

/** The axes that run to the right and up in the plane across `axis`. */
const inPlane = (axis) => [0, 1, 2].filter((other) => other !== axis);

/** Make an element. What begins with "on" is a listener; false and null leave an attribute out. */
function make(tag, traits = {}, ...children) {
  const svg = ["svg", "g", "line", "rect", "circle", "polyline"].includes(tag);
  const element = svg
    ? document.createElementNS("http://www.w3.org/2000/svg", tag)
    : document.createElement(tag);
  for (const [name, value] of Object.entries(traits)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== false && value !== null) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

/** Lay layers over one another, exactly as `scene.blend` does; codes lie (right, up). */
export function blend(layers, tables, opacity, width, height) {
  const colours = new Float64Array(3 * width * height);
  layers.forEach((codes, number) => {
    const table = tables[number];
    const share = number ? opacity : 1;
    for (let place = 0; place < codes.length; place++) {
      const entry = 4 * codes[place];
      const alpha = (table[entry + 3] / 255) * share;
      if (alpha === 0) continue;
      for (let channel = 0; channel < 3; channel++) {
        const below = colours[3 * place + channel];
        colours[3 * place + channel] = below + (table[entry + channel] - below) * alpha;
      }
    }
  });
  const picture = new ImageData(width, height);
  for (let x = 0; x < width; x++) {
    for (let y = 0; y < height; y++) {
      const from = 3 * (x * height + y);
      const to = 4 * ((height - 1 - y) * width + x); // pictures begin at the top
      picture.data[to] = colours[from]; // rounded, half to even, as in Python
      picture.data[to + 1] = colours[from + 1];
      picture.data[to + 2] = colours[from + 2];
      picture.data[to + 3] = 255;
    }
  }
  return picture;
}

/** One plane in the page: picture, lines over it, and what the pointer and the keys do there. */
class Plane {
  constructor(view, panel, axis) {
    const { shape, spacing, planes, ends, panels } = view.scene;
    Object.assign(this, { view, panel, axis, name: planes[axis], wheel: 0 });
    this.axes = inPlane(axis);
    [this.width, this.height] = this.axes.map((a) => shape[a]);
    [this.across, this.up] = this.axes.map((a) => spacing[a]);
    this.mm = [this.width * this.across, this.height * this.up];
    this.fine = Math.min(this.across, this.up); // what the brush's radius is counted in
    this.title = panels[panel].title;

    this.canvas = make("canvas", { width: this.width, height: this.height });
    this.lines = make("svg", { viewBox: `0 0 ${this.mm.join(" ")}`, "aria-hidden": "true" });
    this.caption = make("div", { class: "mv-caption", "aria-hidden": "true" });
    const [[left, right], [bottom, top]] = this.axes.map((a) => ends[a]);
    const letters = Object.entries({ left, right, bottom, top }).map(([side, letter]) =>
      make("span", { class: `mv-letter mv-${side}`, "aria-hidden": "true" }, letter),
    );
    this.element = make(
      "div",
      {
        class: "mv-plane",
        tabindex: 0,
        role: "application",
        "aria-roledescription": "slice",
        style: `aspect-ratio: ${this.mm[0]} / ${this.mm[1]}`,
        onpointerdown: (event) => this.press(event),
        onpointermove: (event) => this.drag(event),
        onpointerup: (event) => this.release(event),
        onpointercancel: () => this.cancel(),
        onpointerleave: () => this.brush?.remove(),
        onwheel: (event) => this.scroll(event),
        onkeydown: (event) => this.key(event),
      },
      this.canvas,
      this.lines,
      ...letters,
    );
    const share = `flex-grow: ${this.mm[0]}`; // a millimetre is as long in every plane
    this.slot = make("div", { class: "mv-slot", style: share }, this.caption, this.element);
  }

  // --- drawing --------------------------------------------------------------------------------

  drawPicture() {
    const { codes, tables, opacity } = this.view;
    const layers = codes[this.panel][this.axis];
    if (!layers.length) return;
    const picture = blend(layers, tables[this.panel], opacity, this.width, this.height);
    this.canvas.getContext("2d").putImageData(picture, 0, 0);
  }

  /** Millimetres in the picture, of voxel edges counted from the lower left. */
  place(right, up) {
    return [right * this.across, this.mm[1] - up * this.up];
  }

  drawLines() {
    const { cursor, boxes, selected, scene } = this.view;
    const [right, up] = this.axes.map((a) => cursor[a] + 0.5);
    const [x, y] = this.place(right, up);
    const [wide, high] = this.mm;
    const cross = [
      make("line", { class: "mv-cross", x1: x, x2: x, y1: 0, y2: high }),
      make("line", { class: "mv-cross", x1: 0, x2: wide, y1: y, y2: y }),
    ];
    const frames = boxes.flatMap((box, number) => this.frame(box, number, number === selected));
    this.lines.replaceChildren(...frames, ...cross);
    const slice = cursor[this.axis];
    const count = scene.shape[this.axis];
    this.caption.textContent = `${this.name} ${slice + 1}/${count}`;
    const where = `${this.title} ${this.name}, slice ${slice + 1} of ${count}`;
    this.element.setAttribute("aria-label", `${where}. Arrow keys move, page keys change slice.`);
  }

  frame({ low, high, colour, name }, number, selected) {
    const here = this.view.cursor[this.axis];
    if (low[this.axis] >= here + 1 || high[this.axis] <= here) return [];
    const [a, b] = this.axes;
    const [x, y] = this.place(low[a], high[b]);
    const box = { x, y, width: (high[a] - low[a]) * this.across, height: (high[b] - low[b]) * this.up };
    const line = make("rect", { ...box, class: "mv-box", stroke: css(colour), "stroke-width": selected ? 4 : 1.5 });
    const edge = make("rect", {
      ...box,
      class: "mv-edge", // wider than the line, so that it can be hit
      onpointerdown: (event) => {
        event.stopPropagation();
        this.view.send({ type: "box", box: selected ? null : number });
      },
    });
    if (name) {
      const title = document.createElementNS("http://www.w3.org/2000/svg", "title");
      title.textContent = name;
      edge.append(title);
    }
    return [line, edge];
  }

  drawBrush([right, up]) {
    const [cx, cy] = this.place(right + 0.5, up + 0.5);
    this.brush?.remove();
    this.brush = make("circle", { class: "mv-brush", cx, cy, r: Math.max(this.view.radius, 0.5) * this.fine });
    this.lines.append(this.brush);
  }

  drawStroke() {
    const { path, view } = this;
    const [a, b] = this.axes;
    const points = path.map((at) => this.place(at[a] + 0.5, at[b] + 0.5).join()).join(" ");
    const last = path.at(-1);
    view.preview?.remove();
    view.preview = make("polyline", {
      class: "mv-stroke",
      points: path.length > 1 ? points : `${points} ${points}`,
      stroke: view.tool === "eraser" ? "white" : css(view.colour),
      "stroke-width": Math.max(2 * view.radius, 1) * this.fine,
    });
    this.lines.append(view.preview);
    this.drawBrush([last[a], last[b]]);
  }

  // --- pointer and keys -----------------------------------------------------------------------

  /** Voxel coordinates under the pointer; the middle of a voxel is a whole number. */
  under(event) {
    const box = this.canvas.getBoundingClientRect();
    const right = ((event.clientX - box.left) / box.width) * this.width - 0.5;
    const up = ((box.bottom - event.clientY) / box.height) * this.height - 0.5;
    return [right, up];
  }

  /** The whole cursor, with this plane's two coordinates set. */
  at([right, up], whole = true) {
    const cursor = [...this.view.cursor];
    const [a, b] = this.axes;
    cursor[a] = whole ? clip(Math.round(right), this.width) : Math.round(right * 100) / 100;
    cursor[b] = whole ? clip(Math.round(up), this.height) : Math.round(up * 100) / 100;
    return cursor;
  }

  press(event) {
    if (event.button !== 0) return;
    this.element.focus({ preventScroll: true });
    this.element.setPointerCapture(event.pointerId);
    event.preventDefault();
    if (this.view.tool === "look") {
      this.looking = true;
      this.view.ask(this.at(this.under(event)));
    } else {
      this.path = [this.at(this.under(event), false)];
      this.drawStroke();
    }
  }

  drag(event) {
    if (this.view.tool !== "look" && !this.path) this.drawBrush(this.under(event));
    if (this.looking) this.view.ask(this.at(this.under(event)));
    if (!this.path) return;
    const moves = event.getCoalescedEvents?.() ?? [];
    for (const move of moves.length ? moves : [event]) {
      this.path.push(this.at(this.under(move), false));
    }
    this.drawStroke();
  }

  release() {
    this.looking = false;
    if (!this.path) return;
    const { view, axis, path } = this;
    this.path = null;
    view.stroked(axis, path);
  }

  cancel() {
    this.looking = false;
    this.path = null;
    this.view.preview?.remove();
  }

  /** Change the slice; at the last one the page scrolls on. */
  scroll(event) {
    const pixels = event.deltaY * [1, 20, 400][event.deltaMode];
    this.wheel = Math.sign(this.wheel) === Math.sign(pixels) ? this.wheel + pixels : pixels;
    const slices = Math.trunc(this.wheel / WHEEL_PX);
    const there = clip(this.view.aim[this.axis] - slices, this.view.scene.shape[this.axis]);
    if (slices && there === this.view.aim[this.axis]) return;
    event.preventDefault();
    this.wheel -= slices * WHEEL_PX;
    if (slices) this.step(2, there - this.view.aim[this.axis]);
  }

  /** Move along the plane's first (0) or second (1) axis, or from slice to slice (2). */
  step(which, voxels) {
    const cursor = [...this.view.aim];
    const axis = [...this.axes, this.axis][which];
    cursor[axis] = clip(cursor[axis] + voxels, this.view.scene.shape[axis]);
    this.view.ask(cursor);
  }

  key(event) {
    const { view } = this;
    const command = event.ctrlKey || event.metaKey;
    const letter = event.key.toLowerCase();
    if (event.key in KEYS && !command) this.step(...KEYS[event.key]);
    else if (letter === "b" && !command && view.boxes.length) view.nextBox();
    else if (view.scene.drawing && command && letter === "z") {
      view.send({ type: event.shiftKey ? "redo" : "undo" });
    } else if (view.scene.drawing && command && letter === "y") view.send({ type: "redo" });
    else return;
    event.preventDefault();
    event.stopPropagation();
  }
}

/** A widget's view: all its planes, the controls below them, and the talk with Python. */
class View {
  constructor(model, root) {
    Object.assign(this, { model, root });
    this.scene = null;
    this.tables = []; // by panel and layer
    this.codes = []; // by panel, axis and layer
    this.planes = [];
    this.cursor = [0, 0, 0];
    this.aim = [0, 0, 0]; // where the cursor will be once Python has answered
    this.opacity = 1;
    this.boxes = [];
    this.selected = null;
    this.tool = "look";
    this.radius = 3;
    this.number = null; // the class that is drawn
    this.waiting = false; // for the answer to a cursor
    this.wanted = null; // the cursor to ask for next
  }

  receive(message, buffers) {
    if (message.type === "scene") this.setScene(message, buffers.map(bytes));
    else if (message.type === "planes") this.setPlanes(message, buffers.map(bytes));
    else if (message.type === "problem") this.problem.textContent = message.text;
  }

  send(message) {
    this.problem.textContent = "";
    this.model.send(message);
  }

  /** Ask for a cursor; while an answer is awaited, only the latest wish is kept. */
  ask(cursor) {
    this.aim = cursor;
    if (this.waiting) {
      this.wanted = cursor;
      return;
    }
    this.waiting = true;
    this.wanted = null;
    this.send({ type: "cursor", cursor });
  }

  nextBox() {
    const next = this.selected === null ? 0 : this.selected + 1;
    this.send({ type: "box", box: next < this.boxes.length ? next : null });
  }

  get colour() {
    return this.scene.drawing.classes.find(({ number }) => number === this.number).colour;
  }

  stroked(axis, path) {
    this.lastAxis = axis;
    const limits = this.tool === "threshold" ? this.limits.map(({ value }) => Number(value)) : null;
    const { tool: mode, number, radius } = this;
    this.send({ type: "stroke", axis, path, mode, number, radius, limits });
  }

  setScene(scene, tables) {
    this.scene = scene;
    let next = 0;
    this.tables = scene.panels.map(({ layers }) => tables.slice(next, (next += layers)));
    this.codes = scene.panels.map(() => [[], [], []]);
    const classes = scene.drawing?.classes ?? [];
    if (!classes.some(({ number }) => number === this.number)) this.number = classes[0]?.number;
    if (!scene.drawing) this.tool = "look";
    this.build();
  }

  setPlanes(message, buffers) {
    if (!this.scene) return; // meant for a view that opened earlier; this one's scene will come
    let next = 0;
    this.scene.panels.forEach(({ layers }, panel) => {
      for (const axis of message.axes) {
        this.codes[panel][axis] = buffers.slice(next, (next += layers));
      }
    });
    const faded = this.opacity !== message.opacity;
    const { cursor, opacity, selected, boxes } = message;
    Object.assign(this, { cursor, opacity, selected, boxes: boxes ?? this.boxes });
    this.waiting = false;
    if (!this.wanted) this.aim = [...cursor];
    this.place.textContent = message.place;
    message.values.forEach((text, panel) => (this.values[panel].textContent = text));
    if (document.activeElement !== this.slider) this.slider.value = opacity;
    if (this.undo) {
      this.undo.disabled = !message.undo;
      this.redo.disabled = !message.redo;
    }
    this.preview?.remove();
    for (const plane of this.planes) {
      if (faded || message.axes.includes(plane.axis)) plane.drawPicture();
      if (!plane.path) plane.drawLines();
    }
    if (this.wanted) this.ask(this.wanted);
  }

  // --- the page ---------------------------------------------------------------------------------

  build() {
    const { panels } = this.scene;
    const titled = panels.length > 1 || panels[0].title;
    this.values = panels.map(() => make("div", { class: "mv-values" }));
    this.planes = [];
    const shown = panels.map(({ title }, panel) => {
      const planes = [0, 1, 2].map((axis) => new Plane(this, panel, axis));
      this.planes.push(...planes);
      const wide = planes.reduce((sum, { mm }) => sum + mm[0], 0);
      const high = Math.max(...planes.map(({ mm }) => mm[1]));
      const most = Math.round((TALLEST_PX * wide) / high);
      return make(
        "section",
        { class: "mv-panel", style: `max-width: ${most}px`, "aria-label": title || "scan" },
        ...(titled ? [make("div", { class: "mv-title" }, title)] : []),
        make("div", { class: "mv-planes" }, ...planes.map(({ slot }) => slot)),
        this.values[panel],
      );
    });
    this.place = make("span", { class: "mv-place", role: "status", "aria-live": "polite" });
    this.problem = make("div", { class: "mv-problem", role: "alert" });
    this.root.replaceChildren(
      ...(this.scene.drawing ? [this.toolbar()] : []),
      make("div", { class: `mv-panels mv-${this.model.get("panels")}` }, ...shown),
      make("div", { class: "mv-foot" }, this.fader(), this.place, ...this.legend()),
      this.problem,
    );
  }

  fader() {
    const change = () => {
      this.opacity = Number(this.slider.value);
      for (const plane of this.planes) plane.drawPicture();
      this.send({ type: "opacity", opacity: this.opacity });
    };
    const label = "Opacity of the overlay";
    const range = { type: "range", min: 0, max: 1, step: 0.05, "aria-label": label, title: label };
    this.slider = make("input", { ...range, oninput: change });
    const layered = this.scene.panels.some(({ layers }) => layers > 1);
    return make("label", { class: "mv-fader", hidden: layered ? null : "" }, "Overlay", this.slider);
  }

  legend() {
    return this.scene.legend.map(({ name, colours, ends }) => {
      const shades = colours.length > 1 ? colours : [colours[0], colours[0]];
      const style = `background: linear-gradient(to right, ${shades.map(css).join(", ")})`;
      const swatch = make("i", { class: ends.length ? "mv-scale" : "mv-swatch", style });
      const text = ends.length ? [`${name} ${ends[0]}`, swatch, ends.at(-1)] : [swatch, name];
      return make("span", { class: "mv-key" }, ...text);
    });
  }

  toolbar() {
    const { classes, limits, largest } = this.scene.drawing;
    const choose = (tool) => {
      this.tool = tool;
      for (const [name, button] of Object.entries(buttons)) {
        button.setAttribute("aria-pressed", name === tool);
      }
      range.hidden = tool !== "threshold";
      this.root.classList.toggle("mv-drawing", tool !== "look");
    };
    const buttons = {};
    for (const [tool, label] of Object.entries(TOOLS)) {
      buttons[tool] = make("button", { type: "button", onclick: () => choose(tool) }, label);
    }
    const options = classes.map(({ number, name }) =>
      make("option", { value: number, selected: number === this.number ? "" : null }, name),
    );
    const picked = (event) => (this.number = Number(event.target.value));
    const pick = make("select", { "aria-label": "Class to draw", onchange: picked }, ...options);
    const size = make("input", {
      type: "number", min: 0, max: largest, step: 0.5, value: this.radius,
      "aria-label": "Brush radius in voxels",
      oninput: () => (this.radius = clip(Number(size.value), largest + 1)),
    });
    this.limits = ["From", "to"].map((name, end) =>
      make("input", {
        type: "number", step: "any", value: Number(limits[end].toPrecision(4)),
        "aria-label": `Threshold ${name.toLowerCase()}`,
      }),
    );
    const range = make("label", {}, "from", this.limits[0], "to", this.limits[1]);
    const act = (label, message) =>
      make("button", { type: "button", onclick: () => this.send(message()) }, label);
    this.undo = act("Undo", () => ({ type: "undo" }));
    this.redo = act("Redo", () => ({ type: "redo" }));
    const fill = act("Fill between slices", () => ({
      type: "fill", axis: this.lastAxis ?? 2, number: this.number,
    }));
    fill.title = "Interpolate the class between the slices you have drawn on";
    choose(this.tool);
    return make(
      "div",
      { class: "mv-tools", role: "toolbar", "aria-label": "Drawing" },
      ...Object.values(buttons), pick, make("label", {}, "radius", size), range,
      this.undo, this.redo, fill,
    );
  }
}

export default {
  render({ model, el }) {
    // Lab would take arrow keys for its own; this attribute keeps them here.
    const root = make("div", { class: "mv-view", "data-lm-suppress-shortcuts": "true" });
    const view = new View(model, root);
    view.problem = make("div", { class: "mv-problem" });
    const receive = (message, buffers) => view.receive(message, buffers);
    const late = setTimeout(() => {
      if (!view.scene) root.append("Run the cell again: a running kernel draws this view.");
    }, 3000);
    el.append(root);
    model.on("msg:custom", receive);
    model.send({ type: "ready" });
    return () => {
      clearTimeout(late);
      model.off("msg:custom", receive);
    };
  },
};
