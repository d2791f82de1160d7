"use strict";
/* Heat maps in SVG over rows and steps, one of several at a time. Stands behind chart.js.

   const map = new HeatMap(element, data);   map.set(data);   // and draws again what was chosen

   data: { steps: [..], maps: [{ label, about, unit, logarithmic, rows: [names], values }, ..] },
   values by row and then step; null is hatched. quintic/diagnostics/heatmaps.py makes it.

   The pointer, or the arrow keys once the map has the focus, show the value of a cell. */
const HeatMap = (() => {
  const { node, element } = Chart;
  /* Viridis (CC0) rises evenly in lightness: who sees fewer colours, or prints without them, loses
     nothing. Its ends differ from white and from dark pages. */
  const STOPS = ["440154", "472d7b", "3b528b", "2c728e", "21918c", "28ae80", "5ec962", "addc30",
    "fde725"].map(stop => [0, 2, 4].map(i => parseInt(stop.slice(i, i + 2), 16)));
  const SHADES = 65, KEY_WIDTH = 160, TOP = 6, RIGHT = 24, BELOW = 78;
  const WIDEST = 36, HEIGHT = 520, TALLEST = 18, LOWEST = 3, OF_LABEL = 13, OF_LETTER = 6.6;
  let maps = 0;

  function colour(shade) {
    const place = shade / (SHADES - 1) * (STOPS.length - 1);
    const i = Math.min(Math.floor(place), STOPS.length - 2);
    const mixed = STOPS[i].map((from, k) => Math.round(from + (place - i) * (STOPS[i + 1][k] - from)));
    return `rgb(${mixed.join()})`;
  }

  // Return the least and the greatest value of rows that has a place on the scale; null without any.
  function ends(values, logarithmic) {
    let low = Infinity, high = -Infinity;
    for (const v of values.flat()) {
      if (v === null || (logarithmic && v <= 0)) continue;
      if (v < low) low = v;
      if (v > high) high = v;
    }
    return low > high ? null : [low, high];
  }

  /* Return the ends of a map's scale, those of all values, and the shade of a value. As on a chart,
     the first twelfth of the steps, where little is as it is later, does not count for the scale:
     what is beyond it has the shade of its end. */
  function scale({ values, unit, logarithmic }) {
    const all = ends(values, logarithmic) ?? [0, 0], columns = values[0].length;
    const late = values.map(row => row.slice(columns > 1 ? Math.ceil(columns / 12) : 0));
    let [low, high] = ends(late, logarithmic) ?? all;
    if (unit === "%") low = 0;
    const f = v => logarithmic ? Math.log(v) : v;
    const within = v => Math.min(Math.max(v, low), high);
    const share = v => high > low ? (f(within(v)) - f(low)) / (f(high) - f(low)) : 0;
    const shade = v => v === null ? null : Math.round(share(v) * (SHADES - 1));
    return { low, high, all, shade };
  }

  const written = (value, unit) => value === null ? "not measured"
    : `${+value.toPrecision(5)}${unit === "%" ? "%" : unit && " " + unit}`;

  return class HeatMap {
    constructor(host, data) {
      host.classList.add("heatmap");
      const label = element("label", { textContent: "shown: " }, host);
      this.choice = element("select", { autocomplete: "off" }, label);
      this.about = element("p", { className: "about" }, host);
      this.frame = element("div", { className: "chart" }, host);
      this.id = `heatmap-${++maps}`;
      this.plot = node("svg", { class: "plot", role: "application", tabindex: 0,
        "aria-roledescription": "heat map" }, this.frame);
      this.tip = element("div", { className: "tip", hidden: true }, this.frame);
      this.tip.setAttribute("role", "status");
      this.width = 0;
      this.listen();
      this.set(data);
      new ResizeObserver(() => { if (this.measure() !== this.width) this.draw(); })
        .observe(this.frame);
    }

    set(data) {
      const before = this.choice.value;
      this.data = data;
      this.choice.replaceChildren();
      for (const { label } of data.maps)
        element("option", { textContent: label, selected: label === before }, this.choice);
      this.at = null;
      this.draw();
    }

    measure() { return Math.max(300, Math.round(this.frame.clientWidth) || 960); }

    draw() {
      const { plot } = this, { steps, maps } = this.data;
      const map = this.map = maps[Math.max(0, this.choice.selectedIndex)];
      const width = this.width = this.measure(), shown = this.at && !this.tip.hidden;
      this.hide();
      plot.replaceChildren();
      if (!map) return;
      this.about.textContent = map.about;
      const { low, high, all, shade } = scale(map), rows = map.rows.length;
      const left = 12 + OF_LETTER * Math.max(...map.rows.map(row => row.length));
      const across = Math.min(WIDEST, (width - left - RIGHT) / steps.length);
      const down = Math.min(TALLEST, Math.max(LOWEST, HEIGHT / rows));
      const x = column => +(left + column * across).toFixed(2);
      const y = row => +(TOP + row * down).toFixed(2);
      this.place = { x, y, left, across, down };
      const right = x(steps.length), bottom = y(rows);
      plot.setAttribute("viewBox", `0 0 ${width} ${bottom + BELOW}`);
      plot.setAttribute("aria-label", `${map.label}: ${rows} rows over ${steps.length} steps, from `
        + `${written(all[0], map.unit)} to ${written(all[1], map.unit)}; arrow keys show values`);
      const hatch = node("pattern", { id: this.id, width: 6, height: 6,
        patternUnits: "userSpaceOnUse" }, node("defs", {}, plot));
      node("path", { d: "M0,6L6,0", class: "hatch" }, hatch);
      const missing = { fill: `url(#${this.id})`, class: "missing" };
      node("rect", { x: left, y: TOP, width: right - left, height: bottom - TOP, ...missing }, plot);
      this.drawCells(map.values, shade);
      node("rect", { x: left, y: TOP, width: right - left, height: bottom - TOP, class: "frame" },
        plot);
      const text = (x, y, content, anchor = "start") =>
        node("text", { x, y, "text-anchor": anchor }, plot, content);
      for (let row = 0, each = Math.ceil(OF_LABEL / down); row < rows; row += each)
        text(left - 6, y(row) + down / 2 + 4, map.rows[row], "end");
      const each = Math.ceil(64 / across);
      for (let column = 0; column < steps.length; column += each)
        text(x(column) + across / 2, bottom + 16, steps[column].toLocaleString("en"), "middle");
      text(left - 30, bottom + 16, "step", "end");
      const key = bottom + 46;
      for (let i = 0; i < SHADES; i++)
        node("rect", { x: left + i * KEY_WIDTH / SHADES, y: key, width: KEY_WIDTH / SHADES,
          height: 12, fill: colour(i), "shape-rendering": "crispEdges" }, plot);
      const end = v => +v.toPrecision(3) + (map.unit === "%" ? "%" : "");
      text(left, key - 4, (all[0] < low ? "\u2264 " : "") + end(low));
      if (all[1] > low)
        text(left + KEY_WIDTH, key - 4, (all[1] > high ? "\u2265 " : "") + end(high), "end");
      text(left, key + 26, map.logarithmic ? "logarithmic" : map.unit === "%" ? "" : map.unit);
      if (map.values.some(row => row.includes(null))) {
        node("rect", { x: left, y: key, width: 24, height: 12, ...missing,
          transform: `translate(${KEY_WIDTH + 16} 0)` }, plot);
        text(left + KEY_WIDTH + 46, key + 11, "not measured");
      }
      if (shown) this.show(...this.at);
    }

    // One path for each shade; equal neighbours of a row are one rectangle.
    drawCells(values, shade) {
      const { x, y } = this.place, parts = new Map();
      values.forEach((row, r) => {
        for (let c = 0, end; c < row.length; c = end) {
          const found = shade(row[c]);
          for (end = c + 1; end < row.length && shade(row[end]) === found; end++);
          if (found === null) continue;
          if (!parts.has(found)) parts.set(found, []);
          parts.get(found).push(`M${x(c)},${y(r)}H${x(end)}V${y(r + 1)}H${x(c)}z`);
        }
      });
      for (const [found, d] of parts)
        node("path", { d: d.join(""), fill: colour(found), class: "cells",
          "shape-rendering": "crispEdges" }, this.plot);
    }

    // Show the value of a cell, and mark it.
    show(row, column) {
      const { map, plot, tip } = this, { steps } = this.data, { x, y, across, down } = this.place;
      this.hide();
      this.at = [row, column];
      for (const kind of ["cursor under", "cursor"])
        node("rect", { x: x(column), y: y(row), width: across, height: down, class: kind }, plot);
      tip.textContent = `${map.rows[row]}, step ${steps[column].toLocaleString("en")}: `
        + written(map.values[row][column], map.unit);
      tip.hidden = false;
      const unit = this.frame.clientWidth / this.width;
      const from = x(column) * unit, to = x(column + 1) * unit;
      const beyond = to + tip.offsetWidth + 12 > this.frame.clientWidth;
      tip.style.left = (beyond ? Math.max(0, from - tip.offsetWidth - 8) : to + 8) + "px";
      tip.style.top = y(row) * unit + "px";
    }

    hide() {
      this.tip.hidden = true;
      this.plot.querySelectorAll(".cursor").forEach(old => old.remove());
    }

    listen() {
      const { plot } = this;
      const pointed = event => {
        const box = plot.getBoundingClientRect(), unit = this.width / box.width;
        const { left, across, down } = this.place;
        const column = Math.floor(((event.clientX - box.left) * unit - left) / across);
        const row = Math.floor(((event.clientY - box.top) * unit - TOP) / down);
        if (this.map.values[row]?.[column] === undefined) this.hide();
        else this.show(row, column);
      };
      plot.addEventListener("pointermove", pointed);
      plot.addEventListener("pointerdown", pointed);
      plot.addEventListener("pointerleave", () => this.hide());
      plot.addEventListener("blur", () => this.hide());
      plot.addEventListener("keydown", event => {
        const last = this.data.steps.length - 1, [row, column] = this.at ?? [0, last];
        const to = { ArrowLeft: [row, column - 1], ArrowRight: [row, column + 1],
          ArrowUp: [row - 1, column], ArrowDown: [row + 1, column], Home: [row, 0],
          End: [row, last] }[event.key];
        const inside = to && this.map.values[to[0]]?.[to[1]] !== undefined;
        if (event.key === "Escape") this.hide();
        else if (to) this.show(...(this.at && inside ? to : [row, column]));
        else return;
        event.preventDefault();
      });
      this.choice.addEventListener("change", () => { this.at = null; this.draw(); });
    }
  };
})();
