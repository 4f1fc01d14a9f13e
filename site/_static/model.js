// A model in the page: the shipped generator and the diffusion model it was tuned from, asked by
// ONNX Runtime Web. The samplers are those of lessons 02 and 07, the dice those of torch.

const [ROWS, SIDE] = [16, 28], SIZE = SIDE * SIDE;
const CLASSES = ['T-shirt', 'trouser', 'pullover', 'dress', 'coat', 'sandal', 'shirt', 'sneaker',
  'bag', 'ankle boot'];

// ── torch's dice ──────────────────────────────────────────────────────────────────────────────

// What torch.Generator().manual_seed(seed) gives to torch.randn: MT19937 (Matsumoto and Nishimura
// 1998), 24 bits a number, and Box and Muller's normals in blocks of sixteen, eight pairs each.
export class Dice {
  constructor(seed) {
    this.state = new Uint32Array(624);
    this.state[0] = seed >>> 0;
    for (let i = 1; i < 624; i++) {
      const last = this.state[i - 1] ^ (this.state[i - 1] >>> 30);
      this.state[i] = Math.imul(1812433253, last) + i;
    }
    this.at = 624;
  }

  twist() {
    const s = this.state;
    for (let i = 0; i < 624; i++) {
      const y = (s[i] & 0x80000000) | (s[(i + 1) % 624] & 0x7fffffff);
      s[i] = s[(i + 397) % 624] ^ (y >>> 1) ^ (y & 1 ? 0x9908b0df : 0);
    }
    this.at = 0;
  }

  uniform() {
    if (this.at === 624) this.twist();
    let y = this.state[this.at++];
    y ^= y >>> 11;
    y ^= (y << 7) & 0x9d2c5680;
    y ^= (y << 15) & 0xefc60000;
    y ^= y >>> 18;
    return (y & 0xffffff) / 0x1000000;
  }

  // `n` standard normal numbers, n a multiple of 16
  normal(n) {
    const z = Float32Array.from({length: n}, () => this.uniform());
    for (let k = 0; k < n; k += 16)
      for (let i = k; i < k + 8; i++) {
        const radius = Math.sqrt(-2 * Math.log(1 - z[i])), angle = 2 * Math.PI * z[i + 8];
        z[i] = radius * Math.cos(angle);
        z[i + 8] = radius * Math.sin(angle);
      }
    return z;
  }
}

// ── The samplers ──────────────────────────────────────────────────────────────────────────────

// x̂ = f(x̂ + t z, t) for each of the falling `times`, from x̂ = 0: one evaluation each
export async function sample(f, z, times, dice) {
  let x = new Float64Array(z.length);
  for (const [k, t] of times.entries()) {
    const noise = k ? dice.normal(z.length) : z;
    x = await f(Float32Array.from(x, (v, i) => v + t * noise[i]), t);
  }
  return x;
}

// The levels of Karras et al. 2022, Eq. 5: n of them, then 0
export function karras(n, low = 0.002, high = 80, rho = 7) {
  const [a, b] = [high ** (1 / rho), low ** (1 / rho)];
  const inner = Array.from({length: n}, (_, i) => (a + i / Math.max(n - 1, 1) * (b - a)) ** rho);
  return [...inner, 0];
}

// Heun's walk from times[0] z to 0, 2n − 1 evaluations; `seen(x, t)` is told every state
export async function walk(f, z, times, seen = () => true) {
  let y = Float64Array.from(z, v => v * times[0]);
  const slope = async (x, t) => {
    const clean = await f(Float32Array.from(x), t);
    return x.map((v, i) => (v - clean[i]) / t);
  };
  for (const [k, s] of times.slice(1).entries()) {
    const t = times[k], d = await slope(y, t);
    let next = y.map((v, i) => v + (s - t) * d[i]);
    if (s > 0) {
      const there = await slope(next, s);
      next = y.map((v, i) => v + (s - t) * (d[i] + there[i]) / 2);
    }
    y = next;
    if (!seen(y, s)) break;
  }
  return y;
}

// Between two noises, on the circle through both, which keeps a standard normal one
export function between(a, b, share) {
  const angle = share * Math.PI / 2, [cos, sin] = [Math.cos(angle), Math.sin(angle)];
  return a.map((v, i) => cos * v + sin * b[i]);
}

// ── The models ────────────────────────────────────────────────────────────────────────────────

let runtime;
const sessions = {};

// f(x, t) of a shipped model, one call at a time; all rows are told the class `asked`, or each in
// turn
export async function model(name, asked = null) {
  const ort = await (runtime ??= import('./ort/ort.wasm.bundle.min.mjs'));
  ort.env.wasm.numThreads = 1;
  ort.env.wasm.wasmPaths = new URL('./ort/', import.meta.url).href;
  const url = new URL(`./models/${name}.onnx`, import.meta.url).href;
  const session = await (sessions[name] ??= ort.InferenceSession.create(url));
  return async (x, t) => {
    const n = x.length / SIZE, k = CLASSES.length, labels = new Float32Array(n * k);
    for (let i = 0; i < n; i++) labels[i * k + (asked ?? i % k)] = 1;
    const mine = queue.then(() => session.run({
      x: new ort.Tensor('float32', x, [n, 1, SIDE, SIDE]),
      t: new ort.Tensor('float32', new Float32Array(n).fill(t), [n]),
      labels: new ort.Tensor('float32', labels, [n, k]),
    }));
    queue = mine.catch(() => {});
    return (await mine).x0.data;
  };
}
let queue = Promise.resolve();

// ── The page ──────────────────────────────────────────────────────────────────────────────────

const PAGE = `
<form data-part="form">
  <div class="line">
    <label>seed
      <input type="number" data-part="seed" value="3" min="0" max="999999" step="1"></label>
    <button type="button" data-part="roll">Other noise</button>
    <label>class <select data-part="asked"><option value="">each in turn</option>
      ${CLASSES.map((name, k) => `<option value="${k}">${name}</option>`).join('')}
    </select></label>
    <label class="grow">towards other noise
      <input type="range" data-part="share" min="0" max="1" step="0.01" value="0"></label>
  </div>
  <div class="line">
    <label>times <input type="text" data-part="times" value="80" size="16"
      aria-describedby="model-times"></label>
    <button type="button" data-times="80">one step</button>
    <button type="button" data-times="80, 0.8">two</button>
    <button type="button" data-times="80, 4, 0.8">three</button>
    <label class="grow">second time
      <input type="range" data-part="second" min="-1.3" max="1.6" step="0.02" value="-0.1" disabled>
    </label>
  </div>
  <p id="model-times" class="hint">Falling noise levels, the first 80; one evaluation each.</p>
  <div class="line">
    <button type="button" class="go" data-part="go">Draw sixteen garments</button>
    <button type="button" data-part="walk">Walk beside it, 35 evaluations</button>
  </div>
  <p data-part="says" role="status" aria-live="polite">Below stands what Python drew from seed 3.
    Press <b>Draw</b>, and your browser does it: it loads the model and what runs it, 20 MB of this
    site, once.</p>
</form>
<div class="pair">
  <figure><canvas data-part="jumped" role="img"></canvas>
    <figcaption>The tuned model at the times you chose</figcaption></figure>
  <figure><canvas data-part="walked" role="img"></canvas>
    <figcaption>The diffusion model it was tuned from, walking from the same noise</figcaption>
  </figure>
</div>`;

class Page {
  constructor(element) {
    element.innerHTML = PAGE;
    this.$ = name => element.querySelector(`[data-part="${name}"]`);
    this.walkedFrom = '3 0 each'; // seed and share of the noise beside it, and the class
    this.begin('jumped', 'tuned');
    this.begin('walked', 'diffusion');
    this.$('go').addEventListener('click', () => this.draw());
    this.$('walk').addEventListener('click', () => this.walk());
    this.$('form').addEventListener('submit', e => { e.preventDefault(); this.draw(); });
    this.$('seed').addEventListener('change', () => this.draw());
    this.$('times').addEventListener('change', () => this.draw());
    this.$('asked').addEventListener('change', () => this.draw());
    this.$('share').addEventListener('input', () => this.draw());
    this.$('second').addEventListener('input', () => {
      this.$('times').value = `80, ${(10 ** this.$('second').value).toPrecision(2)}`;
      this.draw();
    });
    this.$('roll').addEventListener('click', () => {
      this.$('seed').value = Math.floor(1e6 * Math.random());
      this.draw();
    });
    for (const button of element.querySelectorAll('[data-times]'))
      button.addEventListener('click', () => {
        this.$('times').value = button.dataset.times;
        this.draw();
      });
  }

  // Until someone draws here: what the model drew in Python, from the same seed
  async begin(name, file) {
    this.show(name, null);
    const sheet = new Image(), wide = 4 * SIDE;
    sheet.src = new URL(`./models/${file}.png`, import.meta.url).href;
    await sheet.decode();
    const canvas = Object.assign(document.createElement('canvas'), {width: wide, height: wide});
    const context = canvas.getContext('2d');
    context.drawImage(sheet, 0, 0);
    const {data} = context.getImageData(0, 0, wide, wide), x = new Float32Array(ROWS * SIZE);
    for (let i = 0; i < wide * wide; i++) {
      const [row, column] = [Math.floor(i / wide), i % wide];
      const k = 4 * Math.floor(row / SIDE) + Math.floor(column / SIDE);
      x[k * SIZE + (row % SIDE) * SIDE + column % SIDE] = data[4 * i] / 127.5 - 1;
    }
    const drawn = name === 'jumped' ? this.last : this.walking;
    if (!drawn) this.show(name, x, 'Sixteen garments from the noise of seed 3, drawn in Python');
    return x;
  }

  // What stands in the controls; an Error in one sentence where it makes no sense
  get settings() {
    const times = this.$('times').value.split(/[\s,;]+/).filter(Boolean).map(Number);
    const falls = times.every((t, k) => t > 0 && (!k || t < times[k - 1]));
    if (times[0] !== 80 || times.length > 12 || !falls)
      throw new Error('Times are up to twelve falling numbers above 0, the first of them 80.');
    const seed = Number(this.$('seed').value), share = Number(this.$('share').value);
    if (!Number.isInteger(seed) || seed < 0) throw new Error('A seed is a whole number from 0 on.');
    const asked = this.$('asked').value === '' ? null : Number(this.$('asked').value);
    return {times, seed, share, asked};
  }

  // torch.randn(16, 1, 28, 28) of the seed, and the way towards that of the next
  noise({seed, share}) {
    const here = new Dice(seed).normal(ROWS * SIZE);
    return share ? between(here, new Dice(seed + 1).normal(ROWS * SIZE), share) : here;
  }

  say(words) { this.$('says').textContent = words; }

  // Only the newest wish is drawn: what was asked for meanwhile is passed over
  async draw() {
    this.wanted = true;
    if (this.busy) return;
    this.busy = true;
    try {
      while (this.wanted) {
        this.wanted = false;
        await this.jump();
      }
    } catch (error) {
      this.say(error.message);
    } finally {
      this.busy = false;
    }
  }

  async jump() {
    const settings = this.settings;
    this.$('second').disabled = settings.times.length !== 2;
    this.from(settings);
    if (!sessions.tuned) this.say('Loading the model …');
    const f = await model('tuned', settings.asked), began = performance.now();
    const x = await sample(f, this.noise(settings), settings.times, new Dice(settings.seed + 2));
    const ms = performance.now() - began, n = settings.times.length;
    this.last = {ms, x, settings};
    this.show('jumped', x, `Sixteen garments from ${n} evaluation${n > 1 ? 's' : ''}`);
    this.say(`Sixteen garments, ${n} evaluation${n > 1 ? 's' : ''} each: ${Math.round(ms)} ms.`);
  }

  // A walk from other noise than that beside it, or to another class, ends, and its picture goes
  from({seed, share, asked}) {
    const here = `${seed} ${share} ${asked ?? 'each'}`;
    if (this.walkedFrom === here) return;
    this.walkedFrom = here;
    this.walking = {};
    this.show('walked', null, 'No walk from this noise yet');
  }

  async walk() {
    const settings = (() => {
      try { return this.settings; } catch (error) { this.say(error.message); }
    })();
    if (!settings) return;
    this.from(settings);
    const mine = this.walking = {}, times = karras(18);
    this.say('Loading the model …');
    try {
      const f = await model('diffusion', settings.asked), began = performance.now();
      const x = await walk(f, this.noise(settings), times, (y, t) => {
        const size = Math.sqrt(1 + t * t), share = times.indexOf(t) / 18;
        this.show('walked', y.map(v => v / size), `The walk at noise level ${t.toPrecision(2)}`);
        this.say(`Walking: t = ${t.toPrecision(2)}, ${Math.round(100 * share)} % of the way.`);
        return this.walking === mine;
      });
      if (this.walking !== mine) return;
      this.show('walked', x, 'Sixteen garments from a walk of 35 evaluations');
      const ms = performance.now() - began;
      this.say(`Sixteen garments, 35 evaluations each: ${(ms / 1000).toFixed(1)} s.`);
      this.walkedLast = {ms, x};
    } catch (error) {
      this.say(error.message);
    }
  }

  // Sixteen pictures in [−1, 1] on a canvas, four by four; without pictures an empty one
  show(name, x, words = 'Nothing drawn yet') {
    const canvas = this.$(name), across = 4 * SIDE + 5;
    canvas.width = canvas.height = across;
    const context = canvas.getContext('2d'), sheet = context.createImageData(across, across);
    for (let i = 0; i < sheet.data.length; i += 4) sheet.data.set([128, 128, 128, x ? 0 : 40], i);
    if (x) for (let i = 0; i < ROWS * SIZE; i++) {
      const [k, p] = [Math.floor(i / SIZE), i % SIZE];
      const row = Math.floor(k / 4) * (SIDE + 1) + 1 + Math.floor(p / SIDE);
      const at = 4 * (row * across + (k % 4) * (SIDE + 1) + 1 + p % SIDE);
      const v = Math.max(0, Math.min(255, 127.5 * (x[i] + 1)));
      sheet.data.set([v, v, v, 255], at);
    }
    context.putImageData(sheet, 0, 0);
    canvas.setAttribute('aria-label', words);
  }
}

const place = document.getElementById('model');
if (place) window.modelPage = new Page(place);
