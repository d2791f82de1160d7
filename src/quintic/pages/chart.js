"use strict";
/* A chart of lines in SVG, for one page or many, without any library.

   const chart = new Chart(element, options);   chart.set({ axis: "steps" });   // and draws again

   Options, all of which `set` may change:
     series   list of { label, legend (text of its key, else the label), index (style: colour, dashes
              and marker; else its place), x: { AXIS: [..], .. }, y: [..], low, high: [..] (a band,
              such as that of seeds), hidden, dots (marks alone, with bars from low to high) };
              a y of null is a gap, x rises
     axes     { AXIS: { label: "training tokens", unit: "tokens" }, .. };  axis: which one is drawn
     label    what y is, with its unit;  title: what the chart shows, for those who cannot see it
     logX, logY      logarithmic; what is not positive has no place there
     smoothing       0 to 1: share of the axis over which y is averaged, to either side with weights
                     that fall exponentially; what was measured stays behind it, faint
     skipFirst       the first twelfth of the axis does not count for the range of y
     range           [from, to] of the axis, or null; dragging over the plot sets it, a double click
                     or the key 0 takes it back;  onRange(range) hears of it
     levels          values of y to mark, [{ y, text, last (where the text is at the right) }, ..]
     format          function of a y that makes the text of a tip; keys: false for no legend
     onToggle        (series) hears of a click in the legend

   Chart.drawKey(index, parent) appends what a line of that style looks like, for a legend elsewhere;
   Chart.node and Chart.element append an element of SVG and of HTML (heatmap.js).
   The pointer, or the arrow keys once the plot has the focus, show the values nearest to a place.
   Colours are the CSS variables --line-0 to --line-6 (style.css): nothing is drawn again when the
   page turns dark. A line has at most four points for each pixel: first, lowest, highest, last. */
const Chart = (() => {
  const COLOURS = 7, DASHES = [[], [6, 2], [2, 1.5], [7, 2, 1.5, 2], [10, 2.5]];
  const MARKERS = ["o", "s", "^", "D", "v", "X"];
  const LEFT = 64, RIGHT = 16, TOP = 12, BOTTOM = 48, HEIGHT = 400, IN_TIP = 12, DENSE = 150;
  let charts = 0;

  function node(name, attributes, parent, text) {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const key in attributes) made.setAttribute(key, attributes[key]);
    if (text !== undefined) made.textContent = text;
    parent.appendChild(made);
    return made;
  }

  function element(name, properties, parent) {
    const made = Object.assign(document.createElement(name), properties);
    parent.appendChild(made);
    return made;
  }

  function short(value) {
    for (const [factor, unit] of [[1e24, "Y"], [1e21, "Z"], [1e18, "E"], [1e15, "P"], [1e12, "T"],
        [1e9, "B"], [1e6, "M"], [1e3, "k"]])
      if (Math.abs(value) >= factor) return +(value / factor).toPrecision(4) + unit;
    return String(+value.toPrecision(4));
  }

  // Return a position on the page for each value of a range, straight or logarithmic, and back.
  function scale(low, high, from, to, logarithmic) {
    const f = logarithmic ? Math.log : v => v, back = logarithmic ? Math.exp : v => v;
    const place = v => from + (to - from) * (f(v) - f(low)) / (f(high) - f(low));
    const value = at => back(f(low) + (f(high) - f(low)) * (at - from) / (to - from));
    return { low, high, logarithmic, place, value };
  }

  function ticks(s, about) {
    const found = [];
    if (s.logarithmic && s.high / s.low > 8) {
      for (let power = Math.floor(Math.log10(s.low)); power <= Math.log10(s.high); power++)
        for (const digit of s.high / s.low > 1000 ? [1] : [1, 2, 5])
          found.push(digit * 10 ** power);
    } else {
      const rough = (s.high - s.low) / about, power = 10 ** Math.floor(Math.log10(rough));
      const step = power * [1, 2, 5, 10].find(digit => digit * power >= rough * (1 - 1e-9));
      for (let i = Math.ceil(s.low / step); i * step <= s.high; i++) found.push(i * step);
    }
    return found.filter(v => v >= s.low && v <= s.high);
  }

  // Return the mean of each value and those around it, whose weight falls with their distance.
  function smoothed(xs, ys, reach) {
    const sums = ys.map(() => 0), weights = ys.map(() => 0);
    const pass = order => {
      let sum = 0, weight = 0, last = null;
      for (const i of order) {
        if (ys[i] === null) continue;
        const kept = last === null ? 0 : Math.exp(-Math.abs(xs[i] - last) / reach);
        last = xs[i];
        sum *= kept; weight *= kept;
        sums[i] += sum; weights[i] += weight;
        sum += ys[i]; weight += 1;
      }
    };
    const places = [...ys.keys()];
    pass(places);
    pass(places.reverse());
    return ys.map((y, i) => y === null ? null : (sums[i] + y) / (weights[i] + 1));
  }

  // Return the index of the x that is nearest, of xs that rise.
  function nearest(xs, x) {
    let low = 0, high = xs.length - 1;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (xs[middle] < x) low = middle; else high = middle;
    }
    return Math.abs(xs[low] - x) <= Math.abs(xs[high] - x) ? low : high;
  }

  // Return the path of a line, cut at gaps, in whole pixels' columns.
  function linePath(places) {
    const parts = [];
    let column = null, pen = "M";
    const flush = () => {
      if (!column) return;
      const last = column.points.length - 1;
      const kept = last < 2 ? column.points.keys()
        : [...new Set([0, column.lowest, column.highest, last])].sort((a, b) => a - b);
      for (const i of kept) {
        const [x, y] = column.points[i];
        parts.push(`${pen}${x.toFixed(1)},${y.toFixed(1)}`);
        pen = "L";
      }
      column = null;
    };
    for (const place of places) {
      if (!place) { flush(); pen = "M"; continue; }
      const at = Math.round(place[0]);
      if (column && column.at !== at) flush();
      column ??= { at, points: [], lowest: 0, highest: 0 };
      const i = column.points.push(place) - 1;
      if (place[1] < column.points[column.lowest][1]) column.lowest = i;
      if (place[1] > column.points[column.highest][1]) column.highest = i;
    }
    flush();
    return parts.join("");
  }

  // Return the path of a band, with the outermost edges of each pixel's column.
  function bandPath(places) {
    const columns = [];
    for (const [x, low, high] of places) {
      const last = columns[columns.length - 1];
      if (last && Math.round(last[0]) === Math.round(x)) {
        last[1] = Math.max(last[1], low); last[2] = Math.min(last[2], high);
      } else columns.push([x, low, high]);
    }
    const edge = side => columns.map(c => `${c[0].toFixed(1)},${c[side].toFixed(1)}`);
    return columns.length ? "M" + [...edge(1), ...edge(2).reverse()].join("L") + "z" : "";
  }

  function markPath(shape, x, y) {
    const r = 4;
    return {
      s: `M${x - r},${y - r}h${2 * r}v${2 * r}h${-2 * r}z`,
      "^": `M${x},${y - r - 1}l${r + 1},${2 * r + 1}h${-2 * r - 2}z`,
      v: `M${x},${y + r + 1}l${r + 1},${-2 * r - 1}h${-2 * r - 2}z`,
      D: `M${x},${y - r - 1}l${r + 1},${r + 1}l${-r - 1},${r + 1}l${-r - 1},${-r - 1}z`,
      X: `M${x - r},${y - r}l${2 * r},${2 * r}M${x + r},${y - r}l${-2 * r},${2 * r}`,
      o: `M${x - r},${y}a${r},${r} 0 1 0 ${2 * r},0a${r},${r} 0 1 0 ${-2 * r},0z`,
    }[shape];
  }

  function styleOf(i) {
    return { colour: `var(--line-${i % COLOURS})`, marker: MARKERS[i % MARKERS.length],
      dashes: DASHES[i % DASHES.length] };
  }

  function drawLine(d, style, parent, dense) {
    const made = node("path", { d, class: dense ? "line dense" : "line",
      "stroke-dasharray": style.dashes.map(dash => 2 * dash).join(" ") }, parent);
    made.style.stroke = style.colour;
  }

  function drawMark(style, [x, y], parent) {
    const made = node("path", { d: markPath(style.marker, x, y), class: "mark" }, parent);
    made.style.stroke = style.colour;
    made.style.fill = style.marker === "X" ? "none" : style.colour;
  }

  // Append what a line of a style looks like, for a legend.
  function drawKey(index, parent) {
    const key = node("svg", { viewBox: "0 0 56 14", class: "key", "aria-hidden": "true" }, parent);
    drawLine("M0,7L56,7", styleOf(index), key);
    drawMark(styleOf(index), [28, 7], key);
  }

  class Chart {
    static drawKey = drawKey;
    static node = node;
    static element = element;

    // Let the form of controls.html choose for charts that stand together: the axis and its
    // logarithm for all, what concerns values for the first, which is of a loss.
    static control(charts) {
      const at = id => document.getElementById(id), { axes, axis } = charts[0].options;
      for (const name in axes) {
        const label = element("label", {}, at("axes"));
        const input = element("input",
          { type: "radio", name: "axis", value: name, checked: name === axis }, label);
        input.addEventListener("change", () =>
          charts.forEach(chart => chart.set({ axis: name, range: null })));
        label.append(" " + name);
      }
      const choose = (id, use) => at(id).addEventListener("change", event =>
        use(event.target.checked));
      choose("log-x", on => charts.forEach(chart => chart.set({ logX: on })));
      choose("log-y", on => charts[0].set({ logY: on }));
      choose("whole", on => charts[0].set({ skipFirst: !on }));
    }

    constructor(host, options) {
      host.classList.add("chart");
      this.host = host;
      this.id = `chart-${++charts}`;
      this.options = { series: [], axes: {}, axis: null, label: "", title: "", logX: false,
        logY: false, smoothing: 0, skipFirst: false, range: null, levels: [], keys: true,
        format: y => y.toFixed(4), onRange: () => {}, onToggle: () => {} };
      this.plot = node("svg", { class: "plot", role: "application", tabindex: 0,
        "aria-roledescription": "chart" }, host);
      this.tip = element("div", { className: "tip", hidden: true }, host);
      this.tip.setAttribute("role", "status");
      this.keys = element("div", { className: "keys" }, host);
      this.width = 0;
      this.listen();
      this.set(options);
      new ResizeObserver(() => { if (this.measure() !== this.width) this.draw(); }).observe(host);
    }

    // Change options and draw again.
    set(options) {
      Object.assign(this.options, options);
      if ("series" in options || "keys" in options) this.drawKeys();
      this.draw();
    }

    measure() { return Math.max(300, Math.round(this.host.clientWidth) || 960); }

    style(series) { return styleOf(series.index ?? this.options.series.indexOf(series)); }

    // Return the points of a series that have a place on the chart as it is drawn.
    points(series) {
      const { axis, logX, logY, smoothing } = this.options, all = series.x[axis] ?? [];
      const x = [], y = [], raw = [], low = [], high = [];
      const ends = this.options.series.map(s => s.x[axis]?.[s.x[axis].length - 1] ?? 0);
      const reach = smoothing * Math.max(...ends);
      const lines = reach > 0 ? smoothed(all, series.y, reach) : series.y;
      const drawn = v => v !== null && v !== undefined && (!logY || v > 0);
      for (let i = 0; i < all.length; i++) {
        if (all[i] === null || (logX && all[i] <= 0)) continue;
        x.push(all[i]);
        y.push(drawn(lines[i]) ? lines[i] : null);
        raw.push(drawn(series.y[i]) ? series.y[i] : null);
        low.push(series.low && drawn(series.low[i]) ? series.low[i] : null);
        high.push(series.high && drawn(series.high[i]) ? series.high[i] : null);
      }
      return { series, x, y, raw, low, high };
    }

    ranges(shown) {
      const { range, levels, logX, skipFirst, logY } = this.options;
      if (!shown.length) return [logX ? 1 : 0, 10, logY ? 1 : 0, 10];
      let least = Infinity, most = -Infinity;
      const take = v => {
        if (v !== null && v < least) least = v;
        if (v !== null && v > most) most = v;
      };
      const first = Math.min(...shown.map(p => p.x[0]));
      const last = Math.max(...shown.map(p => p.x[p.x.length - 1]));
      let [low, high] = range ?? [logX ? first : Math.min(0, first), last];
      if (logX && low <= 0) low = first;
      const start = range ? low : skipFirst ? last / 12 : -Infinity, end = range ? high : Infinity;
      for (const p of shown) {
        const late = p.x[p.x.length - 1] < start ? -Infinity : start;
        p.x.forEach((x, i) => {
          if (x < late || x > end) return;
          take(p.y[i]); take(p.low[i]); take(p.high[i]);
        });
      }
      for (const level of levels) take(level.y);
      if (least > most) [least, most] = [logY ? 1 : 0, 10];
      const margin = 0.05 * (most - least) || 0.05 * Math.abs(most) || 0.05;
      const below = least > 0 ? Math.max(least - margin, least / 2) : least - margin;
      return [low, high > low ? high : low + 1, below, most + margin];
    }

    draw() {
      const { options, plot } = this;
      const width = this.width = this.measure();
      plot.replaceChildren();
      this.tip.hidden = true;
      plot.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
      plot.setAttribute("aria-label", `${options.title || options.label}: arrow keys show values`);
      this.shown = options.series.filter(s => !s.hidden).map(s => this.points(s))
        .filter(p => p.y.some(v => v !== null));
      const [x0, x1, y0, y1] = this.ranges(this.shown);
      const right = width - RIGHT, bottom = HEIGHT - BOTTOM;
      const x = scale(x0, x1, LEFT, right, options.logX);
      const y = scale(y0, y1, bottom, TOP, options.logY);
      this.scales = { x, y };
      const clip = node("clipPath", { id: this.id }, node("defs", {}, plot));
      node("rect", { x: LEFT, y: TOP - 6, width: right - LEFT + 6, height: bottom - TOP + 12 },
        clip);
      for (const value of ticks(x, Math.max(3, width / 100))) {
        const at = x.place(value);
        node("line", { x1: at, x2: at, y1: TOP, y2: bottom, class: "grid" }, plot);
        node("text", { x: at, y: bottom + 18, "text-anchor": "middle", class: "tick-x" }, plot,
          short(value));
      }
      for (const value of ticks(y, 6)) {
        const at = y.place(value);
        node("line", { x1: LEFT, x2: right, y1: at, y2: at, class: "grid" }, plot);
        node("text", { x: LEFT - 8, y: at + 4, "text-anchor": "end", class: "tick-y" }, plot,
          short(value));
      }
      node("path", { d: `M${LEFT},${TOP}V${bottom}H${right}`, class: "frame" }, plot);
      node("text", { x: (LEFT + right) / 2, y: HEIGHT - 8, "text-anchor": "middle",
        class: "label-x" }, plot, options.axes[options.axis]?.label ?? "");
      node("text", { transform: `translate(14 ${(TOP + bottom) / 2}) rotate(-90)`,
        "text-anchor": "middle", class: "label-y" }, plot, options.label);
      const inside = node("g", { "clip-path": `url(#${this.id})` }, plot);
      for (const level of options.levels) {
        const at = y.place(level.y);
        node("line", { x1: LEFT, x2: right, y1: at, y2: at, class: "level" }, inside);
        node("text", { x: level.last ? right - 6 : LEFT + 6, y: at - 5,
          "text-anchor": level.last ? "end" : "start" }, inside, level.text);
      }
      for (const p of this.shown) this.drawSeries(p, inside);
    }

    drawSeries(p, parent) {
      const { x, y } = this.scales, style = this.style(p.series);
      const at = values => p.x.map((v, i) =>
        values[i] === null ? null : [x.place(v), y.place(values[i])]);
      const edges = p.x.map((v, i) => p.low[i] === null || p.high[i] === null ? null
        : [x.place(v), y.place(p.low[i]), y.place(p.high[i])]).filter(edge => edge);
      if (p.series.dots) {
        for (const [x, low, high] of edges)
          drawLine(`M${x},${low}V${high}`, { ...style, dashes: [] }, parent, true);
        at(p.y).forEach(place => { if (place) drawMark(style, place, parent); });
        return;
      }
      if (edges.length)
        node("path", { d: bandPath(edges), class: "band" }, parent).style.fill = style.colour;
      if (this.options.smoothing)
        node("path", { d: linePath(at(p.raw)), class: "raw" }, parent).style.stroke = style.colour;
      const places = at(p.y);
      drawLine(linePath(places), style, parent, places.length > DENSE);
      if (this.shown.length > 12 && p.x.length > 1) return;
      const every = Math.max(1, Math.floor(places.length / 12));
      const offset = this.options.series.indexOf(p.series) % every;
      places.forEach((place, i) => {
        if (place && i % every === offset) drawMark(style, place, parent);
      });
    }

    drawKeys() {
      this.keys.replaceChildren();
      this.keys.hidden = !this.options.keys;
      if (!this.options.keys) return;
      for (const series of this.options.series) {
        const button = element("button", { type: "button" }, this.keys);
        button.setAttribute("aria-pressed", String(!series.hidden));
        drawKey(series.index ?? this.options.series.indexOf(series), button);
        button.append(series.legend ?? series.label);
        button.addEventListener("click", () => {
          series.hidden = !series.hidden;
          button.setAttribute("aria-pressed", String(!series.hidden));
          this.draw();
          this.options.onToggle(series);
        });
      }
    }

    // Show the values nearest to a place, in pixels of the plot from its left.
    show(at) {
      const { options, plot, tip } = this, { x, y } = this.scales;
      this.hide();
      const found = this.shown.map(p => {
        const i = nearest(p.x, x.value(at));
        return { p, i, x: x.place(p.x[i]) };
      }).filter(f => f.p.y[f.i] !== null);
      if (!found.length) return;
      this.at = at;
      const px = found.reduce((a, b) => Math.abs(b.x - at) < Math.abs(a.x - at) ? b : a).x;
      node("line", { x1: px, x2: px, y1: TOP, y2: HEIGHT - BOTTOM, class: "cursor" }, plot);
      const many = found.length > IN_TIP;
      if (many) found.sort((a, b) => a.p.y[a.i] - b.p.y[b.i]);
      const unit = options.axes[options.axis]?.unit ?? "";
      for (const { p, i, x: place } of found.slice(0, IN_TIP)) {
        const { colour } = this.style(p.series), row = element("div", {}, tip);
        element("span", { className: "dot" }, row).style.background = colour;
        const band = p.low[i] !== null && p.high[i] !== null && p.low[i] < p.high[i];
        const spread = options.smoothing && p.raw[i] !== null ? ` (measured ${options.format(p.raw[i])})`
          : band ? ` (${options.format(p.low[i])} to ${options.format(p.high[i])})` : "";
        row.append(`${p.series.label}: ${options.format(p.y[i])}${spread} at `
          + `${short(p.x[i])} ${unit}`);
        node("circle", { cx: place, cy: y.place(p.y[i]), r: 6, class: "cursor" }, plot)
          .style.stroke = colour;
      }
      if (many)
        element("div", { textContent: `and ${found.length - IN_TIP} above these` }, tip);
      tip.hidden = false;
      const left = px * this.host.clientWidth / this.width, room = this.host.clientWidth;
      const beyond = left + tip.offsetWidth + 16 > room;
      tip.style.left = (beyond ? Math.max(0, left - tip.offsetWidth - 12) : left + 12) + "px";
    }

    hide() {
      this.tip.hidden = true;
      this.tip.replaceChildren();
      this.plot.querySelectorAll(".cursor").forEach(old => old.remove());
    }

    listen() {
      const { plot } = this;
      let from = null, drawn = null;
      const place = event => {
        const box = plot.getBoundingClientRect();
        return (event.clientX - box.left) * this.width / box.width;
      };
      const zoom = range => { this.set({ range }); this.options.onRange(range); };
      plot.addEventListener("pointerdown", event => {
        if (event.pointerType === "mouse" && event.button === 0) from = place(event);
      });
      plot.addEventListener("pointermove", event => {
        const at = place(event);
        this.show(at);
        drawn?.remove();
        if (from !== null && Math.abs(at - from) > 4)
          drawn = node("rect", { x: Math.min(from, at), width: Math.abs(at - from), y: TOP,
            height: HEIGHT - TOP - BOTTOM, class: "zoom" }, plot);
      });
      plot.addEventListener("pointerup", event => {
        const at = Math.min(Math.max(place(event), LEFT), this.width - RIGHT);
        const began = from === null ? at : Math.min(Math.max(from, LEFT), this.width - RIGHT);
        from = null;
        drawn?.remove();
        if (Math.abs(at - began) > 8)
          zoom([this.scales.x.value(Math.min(at, began)), this.scales.x.value(Math.max(at, began))]);
      });
      plot.addEventListener("pointerleave", () => { from = null; drawn?.remove(); this.hide(); });
      plot.addEventListener("dblclick", () => zoom(null));
      plot.addEventListener("blur", () => this.hide());
      plot.addEventListener("keydown", event => {
        const end = this.width - RIGHT, step = (end - LEFT) / 60, at = this.at ?? end + step;
        const to = { ArrowLeft: at - step, ArrowRight: at + step, Home: LEFT, End: end }[event.key];
        if (to !== undefined) this.show(Math.min(Math.max(to, LEFT), end));
        else if (event.key === "Escape") this.hide();
        else if (event.key === "0") zoom(null);
        else return;
        event.preventDefault();
      });
    }
  }
  return Chart;
})();
