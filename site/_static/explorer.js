// The explorer without a kernel: what the atlas recorded, and its strips of sixteen samples.

import {Panel, Plot} from './living.js';

const SHADES = ['#56B4E9', '#3D9BD8', '#2484C4', '#0072B2', '#00558A', '#003355'];
const here = new URL('.', import.meta.url);

// One row of a sheet, four by four on a canvas
function show(canvas, sheet, row, [, high, wide], words) {
  const gap = 1, n = Math.min(16, Math.floor(sheet.width / wide));
  canvas.width = 4 * (wide + gap) + gap;
  canvas.height = 4 * (high + gap) + gap;
  const context = canvas.getContext('2d');
  for (let k = 0; k < n; k++) context.drawImage(sheet, k * wide, row * high, wide, high,
    gap + (k % 4) * (wide + gap), gap + Math.floor(k / 4) * (high + gap), wide, high);
  canvas.setAttribute('aria-label', words);
}

class Explorer {
  constructor(element, runs) {
    this.runs = runs;
    this.sheets = {};
    element.innerHTML = `<div class="explorer"><div class="pair">
      <figure><canvas data-part="here" role="img"></canvas><figcaption></figcaption></figure>
      <figure><canvas data-part="there" role="img"></canvas><figcaption></figcaption></figure>
      </div><div data-part="panel"></div><details><summary></summary><div class="sheet"></div>
      </details></div>`;
    this.$ = what => element.querySelector(what);
    this.runName = Object.keys(runs).find(name => runs[name].method !== 'heun');
    this.begin();
  }

  // The controls of one run: its own budgets and evaluations
  begin(values = {}) {
    const run = this.runs[this.runName], names = Object.keys(this.runs)
      .filter(name => this.runs[name].method !== 'heun');
    const of = key => [...new Set(run.points.map(p => p[key]))].sort((a, b) => a - b);
    const stops = (found, wanted, last) => {
      const at = found.indexOf(wanted);
      const from = last ? found.length - 1 : 0;
      return {stops: found.map(v => [String(v), v]), at: at >= 0 ? at : from};
    };
    const walk = this.runs[run.walk];
    this.panel = new Panel(this.$('[data-part=panel]'), {
      kimg: stops(of('kimg'), values.kimg, true),
      evaluations: stops(of('nfe'), values.evaluations),
      heun: {...stops(walk.points.map(p => p.nfe), values.heun, true), title: 'Heun’s evaluations'},
      run: {stops: names.map(name => [name, name]), at: names.indexOf(this.runName), menu: true},
    }, (now, narrow) => this.draw(now, narrow));
    this.$('summary').textContent = run.title;
    this.$('.sheet').innerHTML = run.table;
  }

  async strip(canvas, run, row, words) {
    const wish = canvas.wish = {};
    this.sheets[run.sheet] ??= new Promise((done, fail) => {
      const image = new Image();
      image.onload = () => done(image);
      image.onerror = () => fail(new Error(`${run.sheet} could not be read`));
      image.src = new URL(`atlas/${run.sheet}`, here).href;
    });
    const sheet = await this.sheets[run.sheet];
    if (canvas.wish === wish) show(canvas, sheet, row, run.shape, words);
  }

  draw(now, narrow) {
    if (now.run !== this.runName) {
      this.runName = now.run;
      queueMicrotask(() => { this.begin(now); this.$('select').focus(); });
    }
    const run = this.runs[this.runName], walk = this.runs[run.walk];
    const near = (points, far) => points.reduce((best, p) => far(p) < far(best) ? p : best);
    const me = run.points.find(p => p.kimg === now.kimg && p.nfe === now.evaluations)
      ?? near(run.points, p => Math.abs(p.kimg - now.kimg) + Math.abs(p.nfe - now.evaluations));
    const it = walk.points.find(p => p.nfe === now.heun) ?? walk.points.at(-1);
    for (const [part, of, p, name] of [['here', run, me, `${me.kimg} kimg`],
      ['there', walk, it, 'Heun']]) {
      this.strip(this.$(`[data-part=${part}]`), of, p.row, `Sixteen samples: ${p.say}`)
        .catch(error => { this.$('[role=status]').textContent = error.message; });
      this.$(`[data-part=${part}]`).nextElementSibling.textContent =
        `${name} · ${p.nfe} evaluation${p.nfe > 1 ? 's' : ''}: ${p.value.toFixed(1)} `
        + `[${p.low.toFixed(1)}, ${p.high.toFixed(1)}], ${p.ms.toPrecision(3)} ms`;
    }
    return {...chart(run, walk, me, it, narrow), words: `${me.words} ${it.say}. ${me.like}`};
  }
}

// Distance over evaluations, a curve for each budget, and the walk
function chart(run, walk, me, it, narrow) {
  const all = [...run.points, ...walk.points], budgets = [...new Set(run.points.map(p => p.kimg))];
  const low = 0.9 * Math.min(...all.map(p => p.low)), high = 1.1 * Math.max(...all.map(p => p.high));
  const [width, left, right] = narrow ? [400, 46, 305] : [800, 62, 640];
  const plot = new Plot({box: [left, right, 10, 285], x: [0.9, 40], y: [Math.max(low, 0.5), high],
    logX: true, logY: true});
  const parts = [], curve = (points, color, name, bold) => {
    parts.push(plot.line(points.map(p => p.nfe), points.map(p => p.value),
      `stroke="${color}" stroke-width="${bold ? 3 : 1.5}"`));
    for (const p of points) parts.push(`<path d="M${plot.X(p.nfe)}
      ${plot.Y(Math.max(p.low, plot.y[0]))}V${plot.Y(p.high)}" stroke="${color}" stroke-width="1"/>
      <circle cx="${plot.X(p.nfe)}" cy="${plot.Y(p.value)}" r="3.5" fill="${color}"/>`);
    return [name, color];
  };
  const names = budgets.map((kimg, k) => curve(run.points.filter(p => p.kimg === kimg),
    SHADES[Math.min(k, SHADES.length - 1)], `${kimg} kimg`, kimg === me.kimg));
  names.push(curve(walk.points, '#D55E00', 'Heun', false));
  for (const p of [me, it]) parts.push(`<circle cx="${plot.X(p.nfe)}" cy="${plot.Y(p.value)}" r="8"
    fill="none" stroke="#000" stroke-width="2"/>`);
  names.forEach(([name, color], k) => parts.push(`<path d="M${right + 12} ${22 + 18 * k}h18"
    stroke="${color}" stroke-width="3"/><text x="${right + 35}" y="${26 + 18 * k}">${name}</text>`));
  const round = [1, 2, 5, 10, 20, 50, 100, 200, 500].filter(v => v > plot.y[0] && v < plot.y[1]);
  parts.push(plot.frame({xs: [1, 2, 4, 8, 17, 35].map(v => [v, String(v)]),
    ys: round.map(v => [v, String(v)]), xName: 'evaluations',
    yName: narrow ? '' : 'distance'}));
  return {svg: parts.join(''), width, height: 325};
}

const place = document.getElementById('explorer');
if (place) fetch(new URL('atlas/atlas.json', here)).then(answer => answer.json())
  .then(runs => { window.explorer = new Explorer(place, runs); })
  .catch(error => { place.textContent = `The records could not be read: ${error.message}`; });
