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

  // Where the path through x at level t stands at level r: on a line the flow keeps the order, so
  // the same share lies below
  transport(x, t, r) {
    const above = this.tail(x, t, false) > 0.5, share = this.tail(x, t, above);
    let [low, high] = [Math.min(...this.means), Math.max(...this.means)];
    const reach = 12 * Math.hypot(Math.max(...this.stds), r) + Math.abs(x) * 1e-3;
    [low, high] = [low - reach, high + reach];
    for (let k = 0; k < 90 && high - low > 1e-13 * (1 + Math.abs(low)); k++) {
      const y = (low + high) / 2, less = this.tail(y, r, above) < share;
      if (less !== above) low = y; else high = y;
    }
    return (low + high) / 2;
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
  frame({xs = [], ys = [], xName = '', yName = ''}) {
    const [l, r, t, b] = this.box, parts = [`<rect x="${l}" y="${t}" width="${r - l}"
      height="${b - t}" fill="none" stroke="#888"/>`];
    for (const [v, word] of xs) parts.push(`<path d="M${this.X(v)} ${b}v4" stroke="#888"/>
      <text x="${this.X(v)}" y="${b + 16}" text-anchor="middle">${word}</text>`);
    for (const [v, word] of ys) parts.push(`<path d="M${l} ${this.Y(v)}h-4" stroke="#888"/>
      <text x="${l - 7}" y="${this.Y(v) + 4}" text-anchor="end">${word}</text>`);
    parts.push(`<text x="${(l + r) / 2}" y="${b + 33}" text-anchor="middle">${xName}</text>
      <text transform="translate(${l - 38} ${(t + b) / 2}) rotate(-90)"
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

// ── Into a page ───────────────────────────────────────────────────────────────────────────────

const KINDS = {flow, schedule, weighting};

// Put the panel of that kind into `element`
export function living(element, kind, data) {
  return KINDS[kind](element, data);
}
