// Panels that live on a page without a kernel: closed forms and records, drawn where they are read.
// `living(kind, data)` puts one into the body of a page of its own, an iframe in the output of a
// cell; each kind computes what the panel of that name computes in Python.

const INK = {black: '#000000', sky: '#56B4E9', blue: '#0072B2', orange: '#E69F00',
  vermillion: '#D55E00', green: '#009E73', purple: '#CC79A7', soft: '#666666', grid: '#DDDDDD'};

// ── Numbers ───────────────────────────────────────────────────────────────────────────────────

const range = (n, f = i => i) => Array.from({length: n}, (_, i) => f(i));
const even = (a, b, n) => range(n, i => a + (b - a) * i / (n - 1));
const digits = (v, n = 3) => {
  if (v === 0 || !Number.isFinite(v)) return String(v);
  const size = Math.floor(Math.log10(Math.abs(Number(v.toPrecision(n)))));
  const short = size < -4 || size >= n ? v.toExponential(n - 1) : v.toPrecision(n);
  const [head, tail] = short.split('e');
  const bare = head.includes('.') ? head.replace(/\.?0+$/, '') : head;
  return tail === undefined ? bare
    : `${bare}e${tail[0]}${tail.slice(1).padStart(2, '0')}`;
};
const fixed = (v, n) => v.toFixed(n).replace('-', '−');

// 1 − erf(x) for x ≥ 0, to some 14 digits: a series near 0, a continued fraction beyond
function erfcOf(x) {
  if (x > 27) return 0;
  if (x < 2.4) {
    let term = x, sum = x;
    for (let n = 1; Math.abs(term) > 1e-17 * Math.abs(sum) && n < 200; n++) {
      term *= -x * x / n;
      sum += term / (2 * n + 1);
    }
    return 1 - 2 / Math.sqrt(Math.PI) * sum;
  }
  let tail = 0;
  for (let n = 60; n > 0; n--) tail = n / 2 / (x + tail);
  return Math.exp(-x * x) / Math.sqrt(Math.PI) / (x + tail);
}

// P(Z < x) of a standard normal
export const normalCdf = x => {
  const tail = erfcOf(Math.abs(x) / Math.SQRT2) / 2;
  return x < 0 ? tail : 1 - tail;
};

// The x with P(Z < x) = p: Newton's steps on the log of the tail
export function normalQuantile(p) {
  if (p > 0.5) return -normalQuantile(1 - p);
  let x = p < 0.02 ? -Math.sqrt(-2 * Math.log(p)) : 2.5 * (p - 0.5);
  for (let k = 0; k < 60; k++) {
    const c = normalCdf(x), slope = Math.exp(-x * x / 2) / Math.sqrt(2 * Math.PI);
    const step = (Math.log(c) - Math.log(p)) * c / slope;
    x -= step;
    if (Math.abs(step) < 1e-13 * (1 + Math.abs(x))) break;
  }
  return x;
}

// ── A mixture of bumps on a line, in closed form ──────────────────────────────────────────────

export class Mixture {
  constructor({means, stds, weights}) { Object.assign(this, {means, stds, weights}); }

  // log density at level t
  logProb(x, t) {
    const logs = this.means.map((m, k) => {
      const s = Math.hypot(this.stds[k], t);
      return Math.log(this.weights[k] / s / Math.sqrt(2 * Math.PI)) - (x - m) ** 2 / (2 * s * s);
    });
    const top = Math.max(...logs);
    return top + Math.log(logs.reduce((sum, v) => sum + Math.exp(v - top), 0));
  }

  // E[x₀ | x_t = x]
  denoise(x, t) {
    const logs = this.means.map((m, k) => {
      const s = Math.hypot(this.stds[k], t);
      return Math.log(this.weights[k] / s) - (x - m) ** 2 / (2 * s * s);
    });
    const top = Math.max(...logs), p = logs.map(v => Math.exp(v - top));
    const total = p.reduce((a, b) => a + b);
    return this.means.reduce((sum, m, k) => {
      const a = this.stds[k] ** 2 / (this.stds[k] ** 2 + t * t);
      return sum + p[k] / total * (a * x + (1 - a) * m);
    }, 0);
  }

  // The share of x_t below x, or above it
  tail(x, t, above) {
    return this.means.reduce((sum, m, k) => {
      const u = (x - m) / Math.max(Math.hypot(this.stds[k], t), 1e-300);
      return sum + this.weights[k] * normalCdf(above ? -u : u);
    }, 0);
  }

  // The density of x_t
  density(x, t) {
    return this.means.reduce((sum, m, k) => {
      const s = Math.max(Math.hypot(this.stds[k], t), 1e-300), u = (x - m) / s;
      return sum + this.weights[k] * Math.exp(-u * u / 2) / s / Math.sqrt(2 * Math.PI);
    }, 0);
  }

  // Where the path through x at level t stands at level r: on a line the flow keeps the order, so
  // the same share lies below. Newton's steps, and halves of the bracket where these are long.
  transport(x, t, r) {
    if (t === r) return x;
    const above = this.tail(x, t, false) > 0.5, share = this.tail(x, t, above);
    const sign = above ? 1 : -1, reach = 40 * Math.hypot(Math.max(...this.stds), r)
      + Math.abs(x) * 1e-3;
    let low = Math.min(...this.means) - reach, high = Math.max(...this.means) + reach;
    let y = (low + high) / 2, last = high - low;
    for (let k = 0; k < 120; k++) {
      const gap = this.tail(y, r, above) - share, step = sign * gap / this.density(y, r);
      if (sign * gap > 0) low = y; else high = y;
      const near = 2 * Math.abs(step) < last && y + step > low && y + step < high;
      const next = near ? y + step : (low + high) / 2;
      last = Math.abs(next - y);
      y = next;
      if (last < 1e-13 * (1 + Math.abs(y))) break;
    }
    return y;
  }
}

// ── Drawing ───────────────────────────────────────────────────────────────────────────────────

const STYLE = `
.ect-alive { background: #fff; color: #111; font: 15px/1.45 system-ui, sans-serif; }
.ect-alive .controls { display: flex; flex-wrap: wrap; gap: 2px 18px; margin: 2px 0 6px; }
.ect-alive label { display: flex; align-items: center; gap: 8px; flex: 1 1 250px;
  min-height: 30px; }
.ect-alive input[type=range] { flex: 1; min-width: 90px; accent-color: #0072B2; }
.ect-alive output { min-width: 56px; font-variant-numeric: tabular-nums; }
.ect-alive select { font: inherit; flex: 1; min-width: 0; color: #111; background: #fff; }
.ect-alive svg { display: block; width: 100%; height: auto; max-width: 820px;
  touch-action: pan-y; }
.ect-alive svg.held { cursor: crosshair; touch-action: none; }
.ect-alive svg text { font: 12px system-ui, sans-serif; fill: #222; paint-order: stroke;
  stroke: #fff; stroke-width: 3px; }
.ect-alive p { margin: 6px 0 2px; }
.ect-alive pre { font-size: 12px; overflow-x: auto; margin: 6px 0; color: #111; }
.ect-alive :focus-visible { outline: 3px solid #E69F00; outline-offset: 2px; }
.ect-alive .note { color: #555; font-size: 12.5px; }`;

// A plot in the box [left, right] × [top, bottom]: where data lie, lines, ticks
export class Plot {
  constructor({box, x, y, logX = false, logY = false}) {
    Object.assign(this, {box, x, y, logX, logY});
  }
  X(v) {
    const [a, b] = this.x, [l, r] = this.box, f = this.logX ? Math.log : u => u;
    return l + (r - l) * (f(v) - f(a)) / (f(b) - f(a));
  }
  Y(v) {
    const [a, b] = this.y, [, , t, bottom] = this.box, f = this.logY ? Math.log : u => u;
    return bottom - (bottom - t) * (f(v) - f(a)) / (f(b) - f(a));
  }
  line(xs, ys, more = '') {
    const at = range(xs.length, i => `${this.X(xs[i]).toFixed(1)},${this.Y(ys[i]).toFixed(1)}`);
    return `<polyline points="${at.join(' ')}" fill="none" ${more}/>`;
  }
  area(xs, ys, more = '') {
    const at = range(xs.length, i => `${this.X(xs[i]).toFixed(1)},${this.Y(ys[i]).toFixed(1)}`);
    return `<polygon points="${at.join(' ')}" ${more}/>`;
  }
  frame({xs = [], ys = [], xName = '', yName = '', away = 38}) {
    const [l, r, t, b] = this.box, parts = [`<rect x="${l}" y="${t}" width="${r - l}"
      height="${b - t}" fill="none" stroke="#888"/>`];
    for (const [v, word] of xs) parts.push(`<path d="M${this.X(v)} ${b}v4" stroke="#888"/>
      <text x="${this.X(v)}" y="${b + 16}" text-anchor="middle">${word}</text>`);
    for (const [v, word] of ys) parts.push(`<path d="M${l} ${this.Y(v)}h-4" stroke="#888"/>
      <text x="${l - 7}" y="${this.Y(v) + 4}" text-anchor="end">${word}</text>`);
    parts.push(`<text x="${(l + r) / 2}" y="${b + 33}" text-anchor="middle">${xName}</text>
      <text transform="translate(${l - away} ${(t + b) / 2}) rotate(-90)"
      text-anchor="middle">${yName}</text>`);
    return parts.join('');
  }
}
const stroke = (color, width = 1.5, dash = '') =>
  `stroke="${color}" stroke-width="${width}"${dash && ` stroke-dasharray="${dash}"`}`;

// A panel: controls over a picture and its sentence, drawn again at every move by
// `draw(values, narrow)`, which gives {svg, width, height, words, table}
export class Panel {
  constructor(element, controls, draw) {
    this.element = element;
    element.classList.add('ect-alive');
    element.innerHTML = `<style>${STYLE}</style><div class="controls"></div>
      <svg role="img"></svg><pre hidden></pre><p role="status" aria-live="polite"></p>
      <p class="note">This panel lives on the page, without a kernel.</p>`;
    this.$ = what => element.querySelector(what);
    this.draw = draw;
    this.controls = Object.fromEntries(Object.entries(controls).map(([name, c]) =>
      [name, this.control(name, c)]));
    this.narrow = element.clientWidth > 0 && element.clientWidth < 520;
    this.move();
    const fit = () => {
      const frame = globalThis.frameElement, wide = element.clientWidth;
      if (wide && wide < 520 !== this.narrow) {
        this.narrow = wide < 520;
        this.move();
      }
      if (frame) frame.style.height = `${element.scrollHeight + 12}px`;
    };
    if (globalThis.ResizeObserver) new ResizeObserver(fit).observe(element);
  }

  // A slider over `stops` [[words, value], …], or a menu of them
  control(name, {stops, at, menu = false, title = name}) {
    const label = document.createElement('label'), last = stops.length - 1;
    label.innerHTML = menu ? `<span>${title}</span><select>${stops.map(([word], k) =>
      `<option value="${k}">${word}</option>`).join('')}</select>`
      : `<span>${title}</span><input type="range" min="0" max="${last}" step="1">
        <output></output>`;
    const input = label.querySelector('input, select');
    input.value = at;
    input.name = name;
    input.addEventListener('input', () => this.move());
    this.$('.controls').append(label);
    return {input, stops, output: label.querySelector('output')};
  }

  get values() {
    return Object.fromEntries(Object.entries(this.controls).map(([name, {input, stops}]) =>
      [name, stops[input.value][1]]));
  }

  place(name, k) {
    const {input, stops} = this.controls[name];
    input.value = Math.max(0, Math.min(stops.length - 1, k));
  }

  move() {
    const began = performance.now();
    for (const {input, stops, output} of Object.values(this.controls)) if (output) {
      output.value = stops[input.value][0];
      input.setAttribute('aria-valuetext', stops[input.value][0]);
    }
    const {svg, width, height, words, table} = this.draw(this.values, this.narrow);
    const picture = this.$('svg');
    picture.setAttribute('viewBox', `0 0 ${width} ${height}`);
    picture.setAttribute('aria-label', words);
    picture.innerHTML = svg;
    this.$('[role=status]').textContent = words;
    this.$('pre').hidden = !table;
    this.$('pre').textContent = table ?? '';
    this.took = performance.now() - began;
  }
}

// ── The flow panel ────────────────────────────────────────────────────────────────────────────

const natural = (x, t) => x / Math.sqrt(1 + t * t);
const INKS = ['#A03000', INK.blue, '#8A3A68', '#00694D'];
const LOOKS = [[INK.vermillion, 'D'], [INK.blue, 's'], [INK.purple, '^'], [INK.green, 'v']];

function flow(element, {mixture: about, names, x, t, levels}) {
  const mixture = new Mixture(about), height = 330;
  const ts = range(60, i => 80 * (0.002 / 80) ** (i / 59)), grid = even(-2.4, 2.4, 241);
  const through = (x, t) => ts.map(s => natural(mixture.transport(x, t, s), s));
  const paths = even(-2.4, 2.4, 25).map(z => through(80 * z, 80));
  const wide = even(-2.6, 2.6, 260), p = wide.map(y => Math.exp(mixture.logProb(y, 0)));
  const top = Math.max(...p);
  const layout = narrow => {
    const [width, split, from] = narrow ? [400, 285, 300] : [800, 560, 584];
    const left = new Plot({box: [narrow ? 46 : 62, split, 10, 282], x: [80, 0.002], y: [-2.6, 2.6],
      logX: true});
    const right = new Plot({box: [from, width - 10, 10, 282], x: [0, 1.08], y: [-2.6, 2.6]});
    const still = paths.map(path => left.line(ts, path, stroke(INK.sky, 0.8))).join('')
      + left.frame({xs: [10, 1, 0.1, 0.01].map(v => [v, String(v)]),
        ys: [-2, -1, 0, 1, 2].map(v => [v, fixed(v, 0)]),
        xName: 'noise level t, falling', yName: narrow ? '' : 'x, at its natural size'})
      + right.area([0, ...p.map(v => v / top), 0], [-2.6, ...wide, 2.6], 'fill="#D9D9D9"')
      + right.frame({xName: 'possible data'});
    return {width, left, right, still};
  };
  let now, layouts = {};
  const draw = ({x: size, t}, narrow) => {
    now = layouts[narrow] ??= layout(narrow);
    const {width, left, right, still} = now;
    const x = size * Math.sqrt(1 + t * t), path = through(x, t), lands = mixture.transport(x, t, 0);
    const past = ts.filter(s => s > t).length;
    const logs = grid.map(y => mixture.logProb(y, 0) - (x - y) ** 2 / (2 * t * t));
    const peak = Math.max(...logs), posterior = logs.map(v => Math.exp(v - peak));
    const answers = names.map(name => [name, mixture.denoise(x, t)]);
    const marks = answers.map(([, y], i) => `<path d="M${right.X(0)} ${right.Y(y)}H${right.X(1.08)}"
      ${stroke(LOOKS[i][0], 1.8, '6 4')}/><circle cx="${right.X(0.85 - 0.2 * i)}"
      cy="${right.Y(y)}" r="4.5" fill="${LOOKS[i][0]}"/><text x="${right.X(1.04)}"
      y="${29 + 15 * i + 15}" text-anchor="end" style="fill:${INKS[i]}">${names[i]}</text>`);
    const svg = still
      + right.area([0, ...posterior, 0], [-2.4, ...grid, 2.4], 'fill="#E69F00" opacity="0.55"')
      + left.line(ts.slice(0, past), path.slice(0, past), stroke(INK.black, 1.2, '2 3'))
      + left.line([t, ...ts.slice(past)], [size, ...path.slice(past)], stroke(INK.black, 2.2))
      + `<circle cx="${left.X(t)}" cy="${left.Y(size)}" r="5.5"/>`
      + `<path d="M${right.X(0)} ${right.Y(lands)}H${right.X(1.08)}" ${stroke(INK.black, 2.2)}/>`
      + `<text x="${right.X(1.04)}" y="29" text-anchor="end">path ends</text>${marks.join('')}`;
    const said = answers.map(([name, y]) => `${name} says ${y.toFixed(2)}`).join('; ');
    return {svg, width, height, lands, answers, words: `At t = ${digits(t)}, x = ${digits(x)} (`
      + `${size.toFixed(2)} at its natural size): the path ends at ${lands.toFixed(2)}; ${said}.`};
  };
  const places = range(241, i => Number((-2.4 + 0.02 * i).toFixed(2)));
  const nearest = (stops, far) =>
    stops.reduce((best, v, k) => far(v) < far(stops[best]) ? k : best, 0);
  const toward = v => s => Math.abs(Math.log(s / v));
  const panel = new Panel(element, {
    x: {stops: places.map(v => [v.toFixed(2), v]), at: nearest(places, v => Math.abs(v - x))},
    t: {stops: levels.map(v => [digits(v), v]), at: nearest(levels, toward(t))},
  }, draw);
  const svg = panel.$('svg');
  svg.classList.add('held');
  const hold = e => {
    const b = svg.getBoundingClientRect(), {left, width} = now;
    const u = (e.clientX - b.left) / b.width * width;
    const v = (e.clientY - b.top) / b.height * height, [l, r, up, down] = left.box;
    panel.place('x', nearest(places, y => Math.abs(left.Y(y) - Math.max(up, Math.min(down, v)))));
    if (u <= r) panel.place('t', nearest(levels, y => Math.abs(left.X(y) - Math.max(l, u))));
    panel.move();
  };
  let held = false;
  svg.addEventListener('pointerdown', e => {
    if (e.button) return;
    held = true;
    svg.setPointerCapture(e.pointerId);
    hold(e);
  });
  svg.addEventListener('pointermove', e => held && hold(e));
  for (const end of ['pointerup', 'pointercancel'])
    svg.addEventListener(end, () => { held = false; });
  return panel;
}

// ── Schedules (lesson 04) ─────────────────────────────────────────────────────────────────────

const viridis = u => {
  const stops = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];
  const k = Math.min(3, Math.floor(4 * u)), f = 4 * u - k;
  return `rgb(${stops[k].map((v, i) => Math.round(v + f * (stops[k + 1][i] - v)))})`;
};
const percent = (v, n = 0) => `${(100 * v).toFixed(n)}%`;

// r = max(0, t (1 − q^−(stage + 1) n(t))), n(t) = 1 + k σ(−t)
export const sigmoidMapping = (q, k) => (t, stage) =>
  Math.max(0, t * (1 - q ** -(stage + 1) * (1 + k / (1 + Math.exp(t)))));

// What a batch is made of: slices of p(t) with equal probability, as many as stage_facts takes
let slices;
function stageFacts(mapping, mean, std, stage) {
  slices ??= range(5001, i => normalQuantile((i + 0.5) / 5001));
  const t = slices.map(z => Math.exp(mean + std * z)), r = t.map(v => mapping(v, stage));
  const n = t.length, weights = Float64Array.from(t, (v, i) => 1 / (v - r[i])).sort();
  return {stage, share: r.filter(v => v > 0).length / n,
    gap: r.reduce((sum, v, i) => sum + 1 - v / t[i], 0) / n, weight: weights[(n - 1) / 2]};
}

export function plan({q, k, stages, kimg, P_mean, P_std}) {
  const total = Math.ceil(kimg * 1000), every = Math.ceil(total / stages), rows = new Map();
  for (let start = 0; start < total; start += every) {
    const stage = Math.min(Math.floor(start / every), stages - 1);
    rows.set(stage, (rows.get(stage) ?? 0) + Math.min(every, total - start));
  }
  const mapping = sigmoidMapping(q, k);
  return [...rows].map(([stage, images]) =>
    ({images, ...stageFacts(mapping, P_mean, P_std, stage)}));
}

function scheduleWords(rows) {
  const open = rows.filter(r => r.share < 0.995), total = rows.reduce((s, r) => s + r.images, 0);
  const run = rows.reduce((s, r) => s + r.images * (1 - r.share), 0) / total;
  const said = open.length ? `${open.map(r => `${percent(1 - r.share)} in stage ${r.stage}`)
    .join(', ')}${open.length < rows.length ? ', then none' : ''}; ${percent(run)} of the whole run`
    : 'none';
  const [first, last] = [rows[0], rows.at(-1)], lost = rows.find(r => r.gap < 1e-7);
  return `${rows.length} stage${rows.length > 1 ? 's' : ''} of ${first.images.toLocaleString('en')}`
    + ` pictures. Rows that look at the clean picture: ${said}. Mean gap Δt/t from `
    + `${digits(first.gap, 2)} to ${digits(last.gap, 2)}; median weight from `
    + `${digits(first.weight)} to ${digits(last.weight)}.`
    + (lost ? ` From stage ${lost.stage} on float32 cannot tell r from t: nothing is left to`
      + ' compare.' : '');
}

function schedule(element, {controls}) {
  const xs = even(-3, 2, 160), ticks = [-3, -2, -1, 0, 1, 2].map(v => [v, String(10 ** v)]);
  const draw = (values, narrow) => {
    const [width, sides] = narrow ? [400, [52, 385]] : [800, [62, 780]];
    const top = new Plot({box: [...sides, 8, 240], x: [-3, 2], y: [-0.05, 1.05]});
    const low = new Plot({box: [...sides, 250, 345], x: [-3, 2], y: [0, 1.1]});
    if (!(values.q > 1)) return {svg: top.frame({}), width, height: 390,
      words: `q must be above 1, not ${digits(values.q)}: no stage would come nearer.`};
    const rows = plan(values), mapping = sigmoidMapping(values.q, values.k);
    const bell = xs.map(u => Math.exp(-(((u * Math.LN10 - values.P_mean) / values.P_std) ** 2) / 2));
    const clean = xs.map(u => mapping(10 ** u, 0) === 0);
    const lines = rows.map(r => top.line(xs, xs.map(u => mapping(10 ** u, r.stage) / 10 ** u),
      stroke(viridis(r.stage / rows.length), 1.7, ['', '6 4', '8 3 2 3'][r.stage % 3])));
    const shaded = xs.map((u, i) => clean[i] ? bell[i] : 0);
    const svg = `<rect x="${top.box[0]}" y="${top.Y(0.012)}" width="${top.box[1] - top.box[0]}"
      height="${top.Y(-0.05) - top.Y(0.012)}" fill="#E69F00" opacity="0.4"/>${lines.join('')}`
      + top.frame({ys: [0, 0.5, 1].map(v => [v, String(v)]), yName: 'r / t'})
      + low.area([-3, ...xs, 2], [0, ...bell, 0], 'fill="#0072B2" opacity="0.5"')
      + low.area([-3, ...xs, 2], [0, ...shaded, 0], 'fill="#E69F00"')
      + low.frame({xs: ticks, xName: 't', yName: 'p(ln t)'})
      + `<text x="${sides[0] + 8}" y="${top.Y(0.04)}" style="fill:#805500">orange: r = 0 (below: in
        stage 0)</text>`;
    const table = 'stage  clean   mean   median\n       rows    Δt/t  1/(t−r)\n' + rows.map(r =>
      `${String(r.stage).padStart(3)}    ${percent(1 - r.share).padStart(4)}  `
      + `${digits(r.gap, 2).padStart(7)}  ${digits(r.weight).padStart(7)}`).join('\n');
    return {svg, width, height: 390, words: scheduleWords(rows), table};
  };
  return new Panel(element, controls, draw);
}

// ── Weights (lesson 05) ───────────────────────────────────────────────────────────────────────

export const WEIGHTS = {uniform: () => 1, inverse_gap: (t, r) => 1 / (t - r),
  inverse_t: t => 1 / t, snr: t => 1 / (t * t), edm: t => 1 / (t * t) + 4};

// How hard a row whose difference has the norm s pulls
export const SLOPES = {squared: s => 2 * s, 'pseudo-Huber': (s, c) => s / Math.hypot(s, c),
  'adaptive, p = 1': (s, c) => 2 * s / (s * s + c * c)};

function weighting(element, {controls, t, stages}) {
  const fine = even(-4, 1.5, 60), eighth = t.length / 8;
  const middle = k => t.slice(k * eighth, (k + 1) * eighth)[Math.floor((eighth - 1) / 2)];
  const draw = ({weight, metric, stage, c}, narrow) => {
    const left = new Plot({box: [62, 390, 10, 235], x: [-0.6, 7.6], y: [0, 1]});
    const right = new Plot({box: narrow ? [62, 390, 290, 515] : [470, 790, 10, 235], x: [-4, 1.5],
      y: [-4, 0.3]});
    const {r, size, g} = stages[stage], pull = SLOPES[metric];
    const loud = t.map((v, i) => WEIGHTS[weight](v, r[i]) * pull(size[i], c) * g[i]);
    const total = loud.reduce((a, b) => a + b, 0);
    const part = range(8, k => loud.slice(k * eighth, (k + 1) * eighth)
      .reduce((a, b) => a + b, 0) / total);
    const curve = fine.map(u => pull(10 ** u, c)), most = Math.max(...curve);
    const log = v => Math.max(-9, Math.log10(v / most));
    const inside = ([x, y]) => y >= -4 && x >= -4 && x <= 1.5;
    const shown = fine.map((u, i) => [u, log(curve[i])]).filter(inside);
    const marks = size.map(s => [Math.log10(s), log(pull(s, c))]).filter(inside);
    const top = part.indexOf(Math.max(...part)), edge = k => k === 0 ? 0 : k === 8 ? Infinity
      : t[k * eighth];
    const rows = total ** 2 / loud.reduce((sum, v) => sum + v * v, 0);
    const ticks = ['1e-4', '1e-3', '0.01', '0.1', '1', '10'].map((word, i) => [i - 4, word]);
    const svg = part.map((v, k) => `<rect x="${left.X(k - 0.4)}" y="${left.Y(v)}"
      width="${left.X(0.8) - left.X(0)}" height="${left.Y(0) - left.Y(v)}" fill="#0072B2"/>`).join('')
      + `<path d="M${left.X(-0.6)} ${left.Y(0.125)}H${left.X(7.6)}" ${stroke(INK.black, 1, '5 4')}/>`
      + left.frame({xs: range(8, k => [k, digits(middle(k), 2)]),
        ys: [0, 0.25, 0.5, 0.75, 1].map(v => [v, String(v)]),
        xName: 't (middle of an eighth of the rows)', yName: 'share of the gradient'})
      + right.line(shown.map(v => v[0]), shown.map(v => v[1]), stroke(INK.black))
      + `<path d="M${right.X(Math.log10(c))} ${right.box[2]}V${right.box[3]}"
        ${stroke(INK.green, 1.5, '2 4')}/>`
      + marks.map(([x, y]) => `<path d="M${right.X(x)} ${right.Y(y) - 5}v10"
        ${stroke(INK.vermillion, 1)}/>`).join('')
      + right.frame({xs: ticks, ys: ticks.slice(0, 5), xName: '‖Δ‖ (dotted: c)',
        yName: 'pull of a row / the largest'});
    const beyond = size.filter(s => s > c).length / size.length;
    const end = edge(top + 1) === Infinity ? 'inf' : digits(edge(top + 1), 2);
    const words = `Stage ${stage}, ${metric}, weight ${weight}, c = ${digits(c)}: the eighth with t `
      + `from ${digits(edge(top), 2)} to ${end} has ${percent(part[top])} of the gradient, the `
      + `softest ${percent(Math.min(...part), 1)}; ${loud.length} rows count as ${rows.toFixed(0)} `
      + `equal ones; ${percent(beyond)} of the rows lie beyond c.`;
    return {svg, width: narrow ? 400 : 800, height: narrow ? 555 : 275, words};
  };
  return new Panel(element, controls, draw);
}

// ── Walks (lesson 02) ─────────────────────────────────────────────────────────────────────────

// The n + 1 levels of n steps, from 80 down to `least` and then 0
export const karras = (n, least, rho) => [...range(n, i => (80 ** (1 / rho)
  + i / Math.max(n - 1, 1) * (least ** (1 / rho) - 80 ** (1 / rho))) ** rho), 0];

// The states of a walk from z along `times`, by Euler's steps or by Heun's
export function walk(mixture, z, times, heun) {
  const slope = (y, t) => (y - mixture.denoise(y, t)) / t, states = [times[0] * z];
  times.slice(1).forEach((s, i) => {
    const t = times[i], y = states[i], d = slope(y, t), next = y + (s - t) * d;
    states.push(heun && s > 0 ? y + (s - t) * (d + slope(next, s)) / 2 : next);
  });
  return states;
}

const within = (v, least, most) => Math.max(least, Math.min(most, v));

function walks({mixture: about}) {
  const mixture = new Mixture(about), fine = range(80, i => 80 * (1e-3 / 80) ** (i / 79));
  const xs = [100, 10, 1, 0.1, 0.01].map(v => [v, String(v)]).concat([[0.001, '0']]);
  return ({start, sampler, steps, rho, t_min: least}, narrow) => {
    const sides = narrow ? [62, 390] : [72, 788], look = {x: [110, 0.0009], logX: true};
    const top = new Plot({box: [...sides, 10, 240], y: [-2.6, 2.6], ...look});
    const low = new Plot({box: [...sides, 252, 358], y: [1e-7, 100], logY: true, ...look});
    const times = karras(steps, least, rho), states = walk(mixture, start, times,
      sampler === 'Heun');
    const toward = states.map((y, i) => mixture.transport(y, times[i], 0));
    const shift = range(steps, i => Math.abs(toward[i + 1] - toward[i]));
    const most = shift.indexOf(Math.max(...shift)), end = states.at(-1), truth = toward[0];
    const at = times.map(t => Math.max(t, 1e-3));
    const seen = states.map((y, i) => within(natural(y, times[i]), -2.6, 2.6));
    const path = fine.map(t => natural(mixture.transport(80 * start, 80, t), t));
    const svg = top.line(fine, path, stroke('#999999', 6)) + top.line(at, seen, stroke(INK.blue))
      + seen.map((y, i) => `<circle cx="${top.X(at[i])}" cy="${top.Y(y)}" r="3.5"
        fill="${INK.blue}"/>`).join('')
      + shift.map((v, i) => `<path d="M${low.X(at[i])} ${low.Y(1e-7)}V${low.Y(Math.max(v, 1e-7))}"
        ${stroke(INK.vermillion, 3)}/>`).join('')
      + top.frame({ys: [-2, -1, 0, 1, 2].map(v => [v, fixed(v, 0)]), yName: 'x / √(1 + t²)'})
      + low.frame({xs, ys: [[1e-6, '10⁻⁶'], [1e-3, '10⁻³'], [1, '1']],
        xName: 'noise level t, falling', yName: 'shift of the end', away: 48});
    const nfe = sampler === 'Heun' ? 2 * steps - 1 : steps;
    const words = `${sampler}, steps: ${steps}, evaluations: ${nfe}. The walk ends at `
      + `${end.toFixed(3)}, the path at ${truth.toFixed(3)}, ${Math.abs(end - truth).toFixed(3)} `
      + `apart; the step from t = ${digits(times[most])} to ${digits(times[most + 1])} moves the `
      + 'end most.';
    return {svg, width: narrow ? 400 : 800, height: 400, words, end, truth, shift};
  };
}

// ── Pairs (lesson 03) ─────────────────────────────────────────────────────────────────────────

// n points of a mixture without noise, at even steps of probability
export function crowd(mixture, n) {
  const grid = even(-5, 5, 8001), below = grid.map(x => mixture.tail(x, 0, false));
  let j = 0;
  return range(n, i => {
    const p = (i + 0.5) / n;
    while (below[j + 1] <= p) j++;
    return grid[j] + (grid[j + 1] - grid[j]) * (p - below[j]) / (below[j + 1] - below[j]);
  });
}

// The mixture of the clean values that may lie behind x at level t
export function posterior({means, stds, weights}, x, t) {
  const wide = stds.map(s => s * s + t * t);
  const logs = means.map((m, k) =>
    Math.log(weights[k]) - (x - m) ** 2 / (2 * wide[k]) - Math.log(wide[k]) / 2);
  const top = Math.max(...logs), p = logs.map(v => Math.exp(v - top));
  const total = p.reduce((a, b) => a + b);
  return new Mixture({weights: p.map(v => v / total), stds: stds.map((s, k) =>
    s * t / Math.sqrt(wide[k])), means: means.map((m, k) => m + stds[k] ** 2 / wide[k] * (x - m))});
}

const mean = v => v.reduce((a, b) => a + b, 0) / v.length;
const deviation = v => {
  const m = mean(v);
  return Math.sqrt(v.reduce((sum, u) => sum + (u - m) ** 2, 0) / (v.length - 1));
};

// Some five round numbers between two others
function ticks(low, high) {
  const rough = (high - low) / 5, size = 10 ** Math.floor(Math.log10(rough));
  const step = size * [1, 2, 5, 10].find(k => k * size >= rough);
  const first = Math.ceil(low / step), n = Math.floor(high / step) - first + 1;
  return range(n, i => [(first + i) * step,
    fixed((first + i) * step, Math.max(0, -Math.floor(Math.log10(step) + 1e-9)))]);
}

function pairs({mixture: about}) {
  const mixture = new Mixture(about);
  return ({t, ratio, x}, narrow) => {
    const from = x * Math.sqrt(1 + t * t), r = ratio * t;
    const x0 = crowd(posterior(about, from, t), 300), xr = x0.map(v => v + ratio * (from - v));
    const answers = xr.map(v => mixture.transport(v, r, 0));
    const levels = even(t, 0, 60), path = levels.map(s => mixture.transport(from, t, s));
    const some = range(30, i => 5 + 10 * i), all = [from, ...some.map(i => x0[i]),
      ...some.map(i => xr[i]), ...path];
    const [least, most] = [Math.min(...all), Math.max(...all)], edge = 0.05 * (most - least) + 1e-6;
    const left = new Plot({box: narrow ? [50, 390, 10, 270] : [62, 500, 10, 290],
      x: [1.04 * t, -0.02 * t], y: [least - edge, most + edge]});
    const right = new Plot({box: narrow ? [50, 390, 330, 560] : [560, 788, 10, 290], x: [0, 105],
      y: [-1.9, 1.9]});
    const go = (x1, y1, x2, y2, look) => `<path d="M${left.X(x1)} ${left.Y(y1)}L${left.X(x2)} `
      + `${left.Y(y2)}" ${look}/>`;
    const bars = Array(76).fill(0);
    for (const v of answers) if (Math.abs(v) <= 1.9)
      bars[Math.min(75, Math.floor((v + 1.9) / 0.05))] += 1 / 3;
    const middle = mean(xr), said = mean(answers), end = path.at(-1);
    const across = (y, look) => `<path d="M${right.X(0)} ${right.Y(y)}H${right.X(105)}" ${look}/>`;
    const [cx, cy] = [left.X(r), left.Y(middle)];
    const turn = Math.atan2(cy - left.Y(from), cx - left.X(t)) * 180 / Math.PI;
    const corner = x > 0 ? right.box[3] - 28 : right.box[2] + 18;
    const svg = some.map(i => go(t, from, 0, x0[i], stroke(INK.orange, 0.5))
        + go(t, from, r, xr[i], stroke(INK.orange, 1.2))
        + `<circle cx="${cx}" cy="${left.Y(xr[i])}" r="2.2" fill="${INK.orange}"/>`).join('')
      + left.line(levels, path, stroke(INK.black, 2))
      + go(t, from, 0, mean(x0), stroke(INK.blue, 1.5, '2 4'))
      + go(t, from, r, middle, stroke(INK.blue, 2.5))
      + `<path d="M0 0l-11 -5v10z" fill="${INK.blue}" transform="translate(${cx} ${cy})
        rotate(${turn})"/>`
      + left.frame({xs: [[t, `t = ${t.toFixed(2)}`], [r, ratio > 0.15 && ratio < 0.8
        ? `r = ${r.toFixed(2)}` : ''], [0, '0']], ys: ticks(...left.y),
        xName: 'noise level, falling', yName: 'x'})
      + bars.map((v, k) => v && `<rect x="${right.X(0)}" y="${right.Y(-1.85 + 0.05 * k)}"
        width="${right.X(v) - right.X(0)}" height="${right.Y(0) - right.Y(0.05)}"
        fill="${INK.orange}"/>`).filter(Boolean).join('')
      + across(end, stroke(INK.black, 2)) + across(said, stroke(INK.blue, 2, '6 4'))
      + right.frame({xs: [0, 50, 100].map(v => [v, String(v)]), ys: [-1, 0, 1].map(v =>
        [v, fixed(v, 0)]), xName: '% of the pairs', yName: narrow ? '' : 'where their paths end'})
      + `<text x="${right.X(103)}" y="${corner}" text-anchor="end">end of our path</text>
        <text x="${right.X(103)}" y="${corner + 16}" text-anchor="end" style="fill:${INKS[1]}">mean
        of the answers (dashed)</text>`;
    const off = said - end, words = `t = ${t.toFixed(2)}, r = ${r.toFixed(2)}, x_t = `
      + `${from.toFixed(2)}. The path ends at ${end.toFixed(2)}; the pairs' answers have the mean `
      + `${said.toFixed(2)}, off by ${off < 0 ? '' : '+'}${off.toFixed(2)}, and spread by `
      + `${deviation(answers).toFixed(2)}.`;
    return {svg, width: narrow ? 400 : 800, height: narrow ? 600 : 335, words, end, said};
  };
}

// ── Records of many numbers ───────────────────────────────────────────────────────────────────

// Numbers packed as 16-bit steps from `low` to `high`
export function unpacked({low, high, steps}) {
  const bytes = atob(steps);
  return range(bytes.length / 2, i => low + (high - low)
    * (bytes.charCodeAt(2 * i) + 256 * bytes.charCodeAt(2 * i + 1)) / 65535);
}

// ── Trainings (lesson 06) ─────────────────────────────────────────────────────────────────────

// Maps (budgets, settings, seeds, ranks), errors and losses as they were recorded
function trainings({names, ranks, exact, maps: packed, errors, losses}) {
  const maps = unpacked(packed), n = ranks.length, seeds = errors[0][0].length;
  const map = (k, i, seed) => {
    const from = ((k * names.length + i) * seeds + seed) * n;
    return maps.slice(from, from + n);
  };
  const steps = range(11, k => 100 * k), over = (rows, i) => rows.map(row => row[i]);
  return ({setting, seed, step}, narrow) => {
    const k = step / 100, i = names.indexOf(setting);
    const [a, b, c] = narrow ? [[46, 390, 30, 250], [56, 195, 330, 480], [250, 390, 330, 480]]
      : [[52, 400, 30, 260], [470, 600, 30, 260], [652, 788, 30, 260]];
    const left = new Plot({box: a, x: [0, 1], y: [-1.7, 1.7]});
    const mid = new Plot({box: b, x: [0, 1000], y: [0.002, 3], logY: true});
    const right = new Plot({box: c, x: [0, 1000], y: [0, 2.4]});
    const tread = (plot, x, rows) => plot.line(x, over(rows, 0).map(mean),
        stroke('#999999', 1, '5 4'))
      + plot.line(x, over(rows, i).map(each => each[seed]), stroke(INK.blue))
      + `<path d="M${plot.X(step)} ${plot.box[2]}V${plot.box[3]}" ${stroke(INK.vermillion, 1)}/>`;
    const title = ({box: [l, r, t]}, word) =>
      `<text x="${(l + r) / 2}" y="${t - 10}" text-anchor="middle">${word}</text>`;
    const svg = left.line(ranks, exact, stroke('#BFBFBF', 5))
      + range(seeds, s => left.line(ranks, map(k, i, s), stroke(INK.sky, 0.8))).join('')
      + left.line(ranks, map(k, i, seed), stroke(INK.blue, 2))
      + left.frame({xs: [0, 0.5, 1].map(v => [v, String(v)]), ys: [-1, 0, 1].map(v =>
        [v, fixed(v, 0)]), xName: 'start z, by rank'}) + title(left, 'f(80 z, 80)')
      + `<text x="${left.X(0.03)}" y="${left.Y(1.42)}">grey: exact map</text>
        <text x="${left.X(0.03)}" y="${left.Y(1.17)}" style="fill:${INKS[1]}">blue: chosen
        seed</text>`
      + tread(mid, steps.slice(1), losses) + mid.frame({xs: [[0, '0'], [1000, '1000']],
        ys: [0.01, 0.1, 1].map(v => [v, String(v)]), xName: 'steps'}) + title(mid, 'loss')
      + tread(right, steps, errors) + right.frame({xs: [[0, '0'], [1000, '1000']],
        ys: [0, 1, 2].map(v => [v, String(v)]), xName: 'steps'}) + title(right, 'mean error')
      + `<text x="${right.X(970)}" y="${right.Y(2.2)}" text-anchor="end">dashed: ECT</text>`;
    const loss = k ? `loss ${losses[k - 1][i][seed].toFixed(4)}` : 'before the first step';
    const words = `${setting}, seed ${seed}, after ${step} steps: mean error `
      + `${errors[k][i][seed].toFixed(2)}, ${loss}.`;
    return {svg, width: narrow ? 400 : 800, height: narrow ? 520 : 300, words};
  };
}

// ── Samples (lesson 07) ───────────────────────────────────────────────────────────────────────

// The network `Precond(MLP)` on a line, as the kit exports it: weights (out, in) of each layer
export class LineNet {
  constructor({weights, biases, sigma}) {
    this.sigma = sigma;
    this.biases = biases.map(b => Float64Array.from(unpacked(b)));
    this.weights = weights.map(w => Float64Array.from(unpacked(w)));
  }

  // The inner network at the inputs u and the noise condition c
  inner(u, c) {
    const n = u.length, first = this.weights[0], wide = first.length / this.biases[0].length;
    const told = [c, ...range(16, i => Math.sin(8 * c * 1e-4 ** (i / 15))),
      ...range(16, i => Math.cos(8 * c * 1e-4 ** (i / 15)))];
    let h = new Float64Array(n * this.biases[0].length);
    this.biases[0].forEach((b, o) => {
      const from = o * wide, rest = told.reduce((sum, v, k) => sum + v * first[from + 1 + k], b);
      for (let k = 0; k < n; k++) h[o * n + k] = first[from] * u[k] + rest;
    });
    this.weights.slice(1).forEach((w, layer) => {
      for (let i = 0; i < h.length; i++) h[i] /= 1 + Math.exp(-h[i]);
      const bias = this.biases[layer + 1], inputs = h.length / n;
      const next = new Float64Array(n * bias.length);
      for (let o = 0; o < bias.length; o++) {
        const row = next.subarray(o * n, (o + 1) * n).fill(bias[o]);
        for (let j = 0; j < inputs; j += 4) { // four at a time: the width is a multiple of 4
          const at = o * inputs + j, [a, b, c, d] = [w[at], w[at + 1], w[at + 2], w[at + 3]];
          for (let k = 0, i = j * n; k < n; k++, i++)
            row[k] += a * h[i] + b * h[i + n] + c * h[i + 2 * n] + d * h[i + 3 * n];
        }
      }
      h = next;
    });
    return h;
  }

  // f(x, t) of all x: the inner network on an even grid of inputs, and cubics between
  answers(x, t, nodes = 161) {
    const size = Math.hypot(t, this.sigma), near = 1 / (1 + (t / this.sigma) ** 2);
    let [low, high] = [Infinity, -Infinity];
    for (const v of x) [low, high] = [Math.min(low, v), Math.max(high, v)];
    const step = (high - low) / size / (nodes - 3), from = low / size - step;
    const F = this.inner(Float64Array.from({length: nodes}, (_, i) => from + i * step),
      Math.log(t) / 4);
    return x.map(v => {
      const at = (v / size - from) / step, k = within(Math.floor(at), 1, nodes - 3), u = at - k;
      const [a, b, c, d] = [F[k - 1], F[k], F[k + 1], F[k + 2]];
      const cubic = b + u / 2 * (c - a + u * (2 * a - 5 * b + 4 * c - d
        + u * (3 * (b - c) + d - a)));
      return near * v + t * this.sigma / size * cubic;
    });
  }
}

// The times 80, `second`, …, `last`, those between in even ratios
export function spaced(evaluations, second, last) {
  if (evaluations < 3) return [80, second].slice(0, evaluations);
  const ratio = Math.min(last / second, 0.9);
  return [80, ...range(evaluations - 1, i => second * ratio ** (i / (evaluations - 2)))];
}

// Three networks' samples from the same noise, at times of one's choice
function samples({mixture: about, nets: told, z: first, fresh: later, quantiles: far}) {
  const mixture = new Mixture(about), nets = told.map(net => new LineNet(net));
  const z = unpacked(first), fresh = unpacked(later), quantiles = unpacked(far), n = z.length;
  const noise = (i, k) => i ? fresh.slice(((i - 1) * nets.length + k) * n, ((i - 1) * nets.length
    + k + 1) * n) : z;
  const edges = even(-1.7, 1.7, 101), height = edges.map(x => mixture.density(x, 0));
  const ones = nets.map(net => net.answers(z.map(v => 80 * v), 80));
  const draw = (net, k, times) => times.slice(1).reduce((x, t, i) => {
    const more = noise(i + 1, k);
    return net.answers(x.map((v, j) => v + t * more[j]), t);
  }, ones[k]);
  const share = (all, holds) => mean(all.map(x => x.filter(holds).length / x.length));
  return ({evaluations, second, last}, narrow) => {
    const times = spaced(evaluations, second, last), all = nets.map((net, k) => draw(net, k, times));
    const w1 = all.map(x => Float64Array.from(x).sort().reduce((sum, v, i) =>
      sum + Math.abs(v - quantiles[i]), 0) / n);
    const parts = [v => v < -0.45, v => v > -0.45 && v < 0.65, v => v > 0.65, v => (v > -0.7
      && v < -0.15) || (v > 0.35 && v < 0.85)].map(holds => share(all, holds));
    const left = new Plot({box: narrow ? [46, 390, 10, 220] : [52, 480, 10, 240], x: [-1.7, 1.7],
      y: [0, 5]});
    const right = new Plot({box: narrow ? [62, 390, 285, 450] : [560, 788, 10, 240],
      x: [-0.6, 3.6], y: [0, 0.5]});
    const counts = Array(100).fill(0);
    for (const x of all) for (const v of x) if (Math.abs(v) < 1.7)
      counts[Math.min(99, Math.floor((v + 1.7) / 0.034))]++;
    const total = counts.reduce((a, b) => a + b), bars = counts.map(v => v / total / 0.034);
    const cut = bars.map(v => Math.min(v, 5));
    const outline = [edges.flatMap((x, i) => i < 100 ? [x, edges[i + 1]] : []),
      cut.flatMap(v => [v, v])];
    const dash = (x, v) => `<path d="M${right.X(x - 0.35)} ${right.Y(v)}H${right.X(x + 0.35)}"
      ${stroke(INK.black, 2)}/>`;
    const svg = left.area([-1.7, ...edges, 1.7], [0, ...height.map(v => Math.min(v, 5)), 0],
        'fill="#D9D9D9"') + left.line(...outline, stroke(INK.blue))
      + left.frame({xs: [-1, 0, 1].map(v => [v, fixed(v, 0)]), ys: [0, 2, 4].map(v =>
        [v, String(v)]), xName: 'x', yName: narrow ? '' : 'density'})
      + `<text x="${left.X(0.1)}" y="26" text-anchor="middle">grey: data</text><text
        x="${left.X(0.1)}" y="42" text-anchor="middle" style="fill:${INKS[1]}">blue: samples</text>`
      + parts.map((v, i) => `<rect x="${right.X(i - 0.4)}" y="${right.Y(v)}"
        width="${right.X(0.8) - right.X(0)}" height="${right.Y(0) - right.Y(v)}"
        fill="${INK.sky}"/>`).join('') + [...about.weights, 0].map((v, i) => dash(i, v)).join('')
      + right.frame({xs: ['left', 'middle', 'right', 'in gaps'].map((v, i) => [i, v]),
        ys: [0, 0.2, 0.4].map(v => [v, String(v)]), yName: 'share (dash: the data)'});
    const words = `Times ${times.map(t => digits(t, 2)).join(', ')}: W₁ ${mean(w1).toFixed(3)} `
      + `[${Math.min(...w1).toFixed(3)}, ${Math.max(...w1).toFixed(3)}]; bumps `
      + `${parts.slice(0, 3).map(v => v.toFixed(2)).join(', ')} (data 0.40, 0.25, 0.35); in the `
      + `gaps ${parts[3].toFixed(2)}.`;
    return {svg, width: narrow ? 400 : 800, height: narrow ? 490 : 285, words, w1, parts};
  };
}

// ── Fields (lesson 08) ────────────────────────────────────────────────────────────────────────

// An address of a picture with `paint(i, j)` = [r, g, b] in row i and column j
function painted(rows, columns, paint) {
  const row = Math.ceil(columns * 3 / 4) * 4, size = 54 + row * rows, bytes = new Uint8Array(size);
  const view = new DataView(bytes.buffer), put = (at, v) => view.setUint32(at, v, true);
  bytes.set([0x42, 0x4d]);
  for (const [at, v] of [[2, size], [10, 54], [14, 40], [18, columns], [22, rows],
    [26, 1 + (24 << 16)]]) put(at, v);
  for (let i = 0; i < rows; i++) for (let j = 0; j < columns; j++)
    bytes.set(paint(i, j).map(Math.round).reverse(), 54 + (rows - 1 - i) * row + 3 * j);
  let text = '';
  for (const b of bytes) text += String.fromCharCode(b);
  return `data:image/bmp;base64,${btoa(text)}`;
}

// From orange at −1 over white to purple at 1
const toPurple = v => {
  const stops = [[127, 59, 8], [224, 130, 20], [254, 224, 182], [247, 247, 247], [216, 218, 235],
    [128, 115, 172], [45, 0, 75]], u = 3 * (within(v, -1, 1) + 1), k = Math.min(5, Math.floor(u));
  return stops[k].map((c, i) => c + (u - k) * (stops[k + 1][i] - c));
};

// Answers and tangents of networks, by source, pair and metric, as they were recorded
function tangents({xs, ts, truth, ideal, networks}) {
  const found = Object.fromEntries(Object.entries(networks).map(([name, n]) =>
    [name, {...n, answers: unpacked(n.answers), slopes: unpacked(n.slopes)}]));
  const far = (a, b) => Math.sqrt(mean(a.map((v, i) => (v - b[i]) ** 2))), at = xs.map(x => 3 * x);
  const columns = ts.length;
  return ({source, pair, metric}, narrow) => {
    const {answers, slopes, tangent} = found[[source, pair, metric].join(' | ')];
    const rows = slopes.length / columns;
    const left = new Plot({box: narrow ? [46, 390, 10, 240] : [52, 390, 10, 250],
      x: [at[0], at.at(-1)], y: [-1.5, 1.6]});
    const right = new Plot({box: narrow ? [52, 320, 300, 500] : [456, 700, 10, 250],
      x: [ts[0], ts.at(-1)], y: [xs[0], xs.at(-1)], logX: true});
    const [l, r, top, low] = right.box, bar = [0, 1].map(k => r + 14 + 14 * k);
    const image = (box, href) => `<image x="${box[0]}" y="${box[2]}" width="${box[1] - box[0]}"
      height="${box[3] - box[2]}" preserveAspectRatio="none" style="image-rendering: pixelated"
      href="${href}"/>`;
    const scale = new Plot({box: [...bar, top, low], x: [0, 1], y: [-1, 1]});
    const words = `At t = 2, rms distance from f* ${far(answers, truth).toFixed(3)}, from D `
      + `${far(answers, ideal).toFixed(3)}; rms of the tangent ${tangent.toFixed(3)}.`;
    const svg = left.line(at, truth, stroke(INK.black, 1.5, '6 4'))
      + left.line(at, ideal, stroke(INK.green, 1.8, '2 3')) + left.line(at, answers,
        stroke(INK.blue))
      + left.frame({xs: [-6, -3, 0, 3, 6].map(v => [v, fixed(v, 0)]), ys: [-1, 0, 1].map(v =>
        [v, fixed(v, 0)]), xName: 'x at t = 2', yName: 'answer'})
      + ['dashed: f*, the exact map', 'dotted: D', 'the network'].map((word, i) => `<text
        x="${l && left.box[0] + 10}" y="${left.box[2] + 18 + 16 * i}" style="fill:${
        ['#111', '#00694D', INK.blue][i]}">${word}</text>`).join('')
      + image(right.box, painted(rows, columns, (i, j) =>
        toPurple(slopes[(rows - 1 - i) * columns + j])))
      + right.frame({xs: [0.1, 1, 10].map(v => [v, String(v)]), ys: [-2, -1, 0, 1, 2].map(v =>
        [v, fixed(v, 0)]), xName: 't', yName: 'x / √(1 + t²)'})
      + image(scale.box, painted(64, 1, i => toPurple(1 - i / 31.5)))
      + [-1, 0, 1].map(v => `<text x="${bar[1] + 5}" y="${scale.Y(v) + 4}">${fixed(v, 0)}</text>`)
        .join('')
      + `<text transform="translate(${bar[1] + 40} ${(top + low) / 2}) rotate(-90)"
        text-anchor="middle">t · df/dt along the path</text>`;
    return {svg, width: narrow ? 400 : 800, height: narrow ? 545 : 295, words};
  };
}

// ── Into a page ───────────────────────────────────────────────────────────────────────────────

// What a panel shows at given values, by kind and data: what Python asks of it in a test
export const DRAWS = {walks, pairs, trainings, samples, tangents};

const KINDS = {flow, schedule, weighting};
for (const [kind, draws] of Object.entries(DRAWS))
  KINDS[kind] = (element, data) => new Panel(element, data.controls, draws(data));

// Put the panel of that kind into `element`
export function living(element, kind, data) {
  return KINDS[kind](element, data);
}
