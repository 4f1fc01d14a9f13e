// The Lab: draw data in the plane, train a denoiser, tighten it into a one-step generator.
//
// One module without a framework, and without a call to anywhere. `mount(element)` puts the Lab
// into a page; the default export is what anywidget asks for. Everything that computes stands in
// `engine`, which holds on to nothing around it, so that its own text can go into a Worker.

export function engine() {
  // ── Writing WebAssembly ─────────────────────────────────────────────────────────────────────
  // A module is a list of bytes. Each function here writes one piece of it; an expression is the
  // bytes that leave its value on the stack.

  const I32 = 0x7f, F32 = 0x7d, V128 = 0x7b, NOTHING = 0x40;

  function unsigned(n) { // LEB128
    const bytes = [];
    for (; n > 127; n >>>= 7) bytes.push((n & 127) | 128);
    return [...bytes, n];
  }

  function signed(n) {
    const bytes = [];
    for (; n < -64 || n > 63; n >>= 7) bytes.push((n & 127) | 128);
    return [...bytes, n & 127];
  }

  const list = items => [...unsigned(items.length), ...items.flat()];
  const section = (id, body) => [id, ...unsigned(body.length), ...body];
  const text = s => list([...s].map(c => c.charCodeAt(0)));
  const float = x => [...new Uint8Array(new Float32Array([x]).buffer)];

  const get = v => [0x20, ...unsigned(v)];
  const set = (v, value) => [...value, 0x21, ...unsigned(v)];
  const int = n => [0x41, ...signed(n)];
  const plus = (...terms) => terms.reduce((a, b) => [...a, ...b, 0x6a]);
  const times = (a, b) => [...a, ...b, 0x6c];
  const repeat = (condition, body) =>
    [0x03, NOTHING, ...condition, 0x04, NOTHING, ...body.flat(), 0x0c, 1, 0x0b, 0x0b];
  const below = (a, b) => [...a, ...b, 0x49];
  const each = (i, from, to, step, body) =>
    [...set(i, from), ...repeat(below(get(i), to), [...body, set(i, plus(get(i), step))])];

  // Four float32 at once
  const simd = code => (...operands) => [...operands.flat(), 0xfd, ...unsigned(code)];
  const V = {
    add: simd(0xe4), sub: simd(0xe5), mul: simd(0xe6), div: simd(0xe7), sqrt: simd(0xe3),
    min: simd(0xe8), max: simd(0xe9), round: simd(0x6a), splat: simd(0x13),
    toInt: simd(0xf8), addInt: simd(0xae), shift: simd(0xab),
  };
  const vector = x => [0xfd, 12, ...float(x), ...float(x), ...float(x), ...float(x)];
  const vectorInt = n => [0xfd, 12, ...[0, 1, 2, 3].flatMap(() => [n, 0, 0, 0])];
  const load = (address, offset = 0) => [...address, 0xfd, 0, 2, ...unsigned(offset)];
  const loadOne = address => [...address, 0xfd, 9, 2, 0]; // one number, four times
  const store = (address, value, offset = 0) =>
    [...address, ...value, 0xfd, 11, 2, ...unsigned(offset)];

  // A function of the module: `params` {name: type}; `body` is told the number of each parameter
  // and how to get another variable.
  function kernel(name, params, body) {
    const names = Object.keys(params), locals = [];
    const variable = type => names.length + locals.push(type) - 1;
    const code = body(Object.fromEntries(names.map((n, i) => [n, i])), variable).flat();
    const declared = list(locals.map(type => [1, type]));
    return {name, params: Object.values(params), code: [...declared, ...code, 0x0b]};
  }

  function assemble(kernels) {
    const types = kernels.map(k => [0x60, ...list(k.params), 0]);
    const memory = [...text('env'), ...text('memory'), 2, 0, 1];
    const exports = kernels.map((k, i) => [...text(k.name), 0, ...unsigned(i)]);
    return new Uint8Array([
      0, 0x61, 0x73, 0x6d, 1, 0, 0, 0,
      ...section(1, list(types)),
      ...section(2, list([memory])),
      ...section(3, list(kernels.map((_, i) => unsigned(i)))),
      ...section(7, list(exports)),
      ...section(10, list(kernels.map(k => [...unsigned(k.code.length), ...k.code]))),
    ]);
  }

  // ── The kernels, four numbers at a time ─────────────────────────────────────────────────────
  // Addresses and lengths are in bytes.

  // c (n, m) = bias (m) + a (n, k) b (k, m); `ar` and `ak` lead to the next row and column of a,
  // so that a transposed a costs nothing. n and m are multiples of 4.
  const matmul = kernel('matmul',
    {a: I32, ar: I32, ak: I32, b: I32, c: I32, n: I32, k: I32, m: I32, bias: I32},
    (p, variable) => {
      const [row, col, end, pb, wide] = Array.from({length: 5}, () => variable(I32));
      const pa = [0, 1, 2, 3].map(() => variable(I32));
      const sums = pa.map(() => [variable(V128), variable(V128)]);
      const factor = variable(V128), right = [variable(V128), variable(V128)];
      const block = halves => [ // four rows, `halves` times four columns
        ...pa.map((v, i) => set(v, plus(get(p.a), times(plus(get(row), int(i)), get(p.ar))))),
        ...sums.flatMap(s => halves.map(j => set(s[j], load(plus(get(p.bias), get(col)), 16 * j)))),
        set(pb, plus(get(p.b), get(col))),
        set(end, plus(get(pb), times(get(p.k), get(wide)))),
        repeat(below(get(pb), get(end)), [
          ...halves.map(j => set(right[j], load(get(pb), 16 * j))),
          ...pa.flatMap((v, i) => [
            set(factor, loadOne(get(v))),
            ...halves.map(j => set(sums[i][j],
              V.add(get(sums[i][j]), V.mul(get(factor), get(right[j]))))),
            set(v, plus(get(v), get(p.ak))),
          ]),
          set(pb, plus(get(pb), get(wide))),
        ]),
        ...sums.flatMap((s, i) => halves.map(j => store(
          plus(get(p.c), get(col), times(plus(get(row), int(i)), get(wide))), get(s[j]), 16 * j))),
      ];
      return [
        set(wide, times(get(p.m), int(4))),
        each(row, int(0), get(p.n), int(4), [
          set(col, int(0)),
          repeat(below(plus(get(col), int(16)), get(wide)),
            [...block([0, 1]), set(col, plus(get(col), int(32)))]),
          repeat(below(get(col), get(wide)), [...block([0]), set(col, plus(get(col), int(16)))]),
        ]),
      ];
    });

  // exp = 2^n 2^f with n whole and |f| <= 1/2, where six terms of the series are enough.
  function exponential(x, n, f) {
    const terms = [1];
    for (let k = 1; k < 7; k++) terms.push(terms[k - 1] * Math.LN2 / k);
    const series = terms.reduceRight((sum, term) =>
      sum ? V.add(V.mul(sum, get(f)), vector(term)) : vector(term), null);
    const clipped = V.max(V.min(x, vector(87)), vector(-87));
    const power = V.shift(V.addInt(V.toInt(get(n)), vectorInt(127)), int(23));
    return [
      ...set(f, V.mul(clipped, vector(Math.LOG2E))), ...set(n, V.round(get(f))),
      ...set(f, V.sub(get(f), get(n))), ...V.mul(series, power),
    ];
  }

  // s = sigmoid(a), h = a s
  const silu = kernel('silu', {a: I32, s: I32, h: I32, size: I32}, (p, variable) => {
    const i = variable(I32), [x, n, f] = [V128, V128, V128].map(variable);
    const at = array => plus(get(array), get(i));
    const exp = exponential(V.sub(vector(0), get(x)), n, f);
    return [each(i, int(0), get(p.size), int(16), [
      set(x, load(at(p.a))),
      store(at(p.s), V.div(vector(1), V.add(vector(1), exp))),
      store(at(p.h), V.mul(get(x), load(at(p.s)))),
    ])];
  });

  // d = d · s (1 + a (1 - s))
  const siluBack = kernel('siluBack', {a: I32, s: I32, d: I32, size: I32}, (p, variable) => {
    const i = variable(I32), at = array => plus(get(array), get(i));
    const rise = V.add(vector(1), V.mul(load(at(p.a)), V.sub(vector(1), load(at(p.s)))));
    return [each(i, int(0), get(p.size), int(16),
      [store(at(p.d), V.mul(load(at(p.d)), V.mul(load(at(p.s)), rise)))])];
  });

  // out (width) = sum over the rows of a, which takes `size` bytes
  const columns = kernel('columns', {a: I32, out: I32, size: I32, width: I32}, (p, variable) => {
    const c = variable(I32), i = variable(I32), sum = variable(V128);
    return [each(c, int(0), get(p.width), int(16), [
      set(sum, vector(0)),
      each(i, get(c), get(p.size), get(p.width),
        [set(sum, V.add(get(sum), load(plus(get(p.a), get(i)))))]),
      store(plus(get(p.out), get(c)), get(sum)),
    ])];
  });

  // Adam (Kingma & Ba 2015) and the running average of what it reaches
  const BETA1 = 0.9, BETA2 = 0.99, TINY = 1e-8;
  const adam = kernel('adam',
    {p: I32, g: I32, m: I32, v: I32, ema: I32, size: I32, rate: F32, root: F32, beta: F32},
    (q, variable) => {
      const i = variable(I32), g = variable(V128), at = array => plus(get(array), get(i));
      const mix = (old, fresh, beta) =>
        V.add(V.mul(old, beta), V.mul(fresh, V.sub(vector(1), beta)));
      const slope = V.add(V.mul(V.sqrt(load(at(q.v))), V.splat(get(q.root))), vector(TINY));
      return [each(i, int(0), get(q.size), int(16), [
        set(g, load(at(q.g))),
        store(at(q.m), mix(load(at(q.m)), get(g), vector(BETA1))),
        store(at(q.v), mix(load(at(q.v)), V.mul(get(g), get(g)), vector(BETA2))),
        store(at(q.p), V.sub(load(at(q.p)),
          V.div(V.mul(load(at(q.m)), V.splat(get(q.rate))), slope))),
        store(at(q.ema), mix(load(at(q.ema)), load(at(q.p)), V.splat(get(q.beta)))),
      ])];
    });

  const KERNELS = [matmul, silu, siluBack, columns, adam];

  // The same five without WebAssembly, one number at a time
  function plainKernels(heap) {
    return {
      matmul(a, ar, ak, b, c, n, k, m, bias) {
        [a, ar, ak, b, c, bias] = [a, ar, ak, b, c, bias].map(address => address >> 2);
        for (let i = 0; i < n; i++) {
          const row = heap.subarray(c + i * m, c + (i + 1) * m);
          row.set(heap.subarray(bias, bias + m));
          for (let l = 0; l < k; l++) {
            const factor = heap[a + i * ar + l * ak], start = b + l * m;
            for (let j = 0; j < m; j++) row[j] += factor * heap[start + j];
          }
        }
      },
      silu(a, s, h, size) {
        [a, s, h] = [a >> 2, s >> 2, h >> 2];
        for (let i = 0; i < size >> 2; i++) {
          heap[s + i] = 1 / (1 + Math.exp(-heap[a + i]));
          heap[h + i] = heap[a + i] * heap[s + i];
        }
      },
      siluBack(a, s, d, size) {
        [a, s, d] = [a >> 2, s >> 2, d >> 2];
        for (let i = 0; i < size >> 2; i++)
          heap[d + i] *= heap[s + i] * (1 + heap[a + i] * (1 - heap[s + i]));
      },
      columns(a, out, size, width) {
        [a, out, size, width] = [a, out, size, width].map(v => v >> 2);
        heap.fill(0, out, out + width);
        for (let i = 0; i < size; i++) heap[out + i % width] += heap[a + i];
      },
      adam(p, g, m, v, ema, size, rate, root, beta) {
        [p, g, m, v, ema] = [p, g, m, v, ema].map(address => address >> 2);
        for (let i = 0; i < size >> 2; i++) {
          const slope = heap[g + i];
          heap[m + i] = BETA1 * heap[m + i] + (1 - BETA1) * slope;
          heap[v + i] = BETA2 * heap[v + i] + (1 - BETA2) * slope * slope;
          heap[p + i] -= rate * heap[m + i] / (root * Math.sqrt(heap[v + i]) + TINY);
          heap[ema + i] = beta * heap[ema + i] + (1 - beta) * heap[p + i];
        }
      },
    };
  }

  // Memory with the kernels that work on it
  function workshop(plain = false, pages = 64) {
    const simdHere = !plain && typeof WebAssembly === 'object';
    const code = simdHere && assemble(KERNELS);
    const fast = simdHere && WebAssembly.validate(code);
    const memory = fast && new WebAssembly.Memory({initial: pages});
    const heap = new Float32Array(fast ? memory.buffer : new ArrayBuffer(pages << 16));
    const run = fast
      ? new WebAssembly.Instance(new WebAssembly.Module(code), {env: {memory}}).exports
      : plainKernels(heap);
    let top = 0;
    const room = n => {
      const start = top;
      top += (n + 3) & ~3;
      return heap.subarray(start, start + n);
    };
    return {run, room, fast};
  }

  // ── Dice ────────────────────────────────────────────────────────────────────────────────────

  class Dice { // sfc32: the same seed, the same throws
    constructor(seed = 0) {
      this.state = Uint32Array.of(seed, seed ^ 0x9e3779b9, 0x243f6a88, 1);
      this.spare = null;
      for (let i = 0; i < 16; i++) this.uniform();
    }

    uniform() {
      const s = this.state, sum = (s[0] + s[1] + s[3]++) >>> 0;
      s[0] = s[1] ^ (s[1] >>> 9);
      s[1] = s[2] + (s[2] << 3);
      s[2] = ((s[2] << 21) | (s[2] >>> 11)) + sum;
      return sum / 4294967296;
    }

    normal() { // two at a time (Marsaglia's polar method)
      if (this.spare !== null) {
        const kept = this.spare;
        this.spare = null;
        return kept;
      }
      let x, y, size;
      do {
        x = 2 * this.uniform() - 1;
        y = 2 * this.uniform() - 1;
        size = x * x + y * y;
      } while (size >= 1 || size === 0);
      const scale = Math.sqrt(-2 * Math.log(size) / size);
      this.spare = y * scale;
      return x * scale;
    }

    normals(n) { return Float32Array.from({length: n}, () => this.normal()); }
  }

  // ── The network: 5 → 64 → 64 → 2, SiLU, preconditioned ──────────────────────────────────────

  const SIGMA = 0.5, T_MAX = 80, T_MIN = 0.002;
  const IN = 8, WIDTH = 64, OUT = 4; // 5 inputs and 2 outputs, filled up with zeros
  const SHAPES = [[IN, WIDTH], [WIDTH], [WIDTH, WIDTH], [WIDTH], [WIDTH, OUT], [OUT]];

  // f(x, t) = skip x + scale F(x in, ln t / 4): Karras et al. 2022, Table 1. Without a boundary
  // there is no skip, and f(x, 0) may be anything.
  function precondition(t, boundary = true) {
    const variance = t * t + SIGMA * SIGMA;
    if (!boundary) return {into: 1 / Math.sqrt(variance), skip: 0, scale: SIGMA};
    return {
      into: 1 / Math.sqrt(variance),
      skip: SIGMA * SIGMA / variance,
      scale: t * SIGMA / Math.sqrt(variance),
    };
  }

  class Net {
    constructor({rows = 256, plain = false} = {}) {
      const shop = workshop(plain), zeros = shop.room(WIDTH);
      Object.assign(this, {rows, zeros, run: shop.run, fast: shop.fast, boundary: true});
      const sizes = SHAPES.map(shape => shape.reduce((a, b) => a * b));
      this.size = sizes.reduce((a, b) => a + b);
      for (const name of ['params', 'grad', 'mean', 'square', 'ema', 'kept'])
        this[name] = shop.room(this.size);
      this.layout = sizes.map((size, i) => sizes.slice(0, i).reduce((a, b) => a + b, 0));
      this.input = shop.room(rows * IN);
      this.hidden = [0, 1].map(() => Object.fromEntries(
        ['a', 's', 'h', 'd'].map(name => [name, shop.room(rows * WIDTH)])));
      this.output = shop.room(rows * OUT);
      this.pull = shop.room(rows * OUT);
      this.turned = [shop.room(WIDTH * WIDTH), shop.room(WIDTH * OUT)];
      this.steps = 0;
    }

    // Random weights: variance-keeping; the first bends spread out, the last answers small
    begin(dice) {
      const [w1, b1, w2, , w3] = this.parts(this.params.fill(0));
      for (let i = 0; i < 5 * WIDTH; i++) w1[i] = dice.normal() / Math.sqrt(5);
      for (let i = 0; i < WIDTH; i++) b1[i] = 2 * dice.uniform() - 1;
      for (let i = 0; i < WIDTH * WIDTH; i++) w2[i] = 1.4 * dice.normal() / Math.sqrt(WIDTH);
      for (let i = 0; i < WIDTH; i++)
        for (let j = 0; j < 2; j++) w3[OUT * i + j] = 0.1 * dice.normal() / Math.sqrt(WIDTH);
      this.adopt(this.params);
    }

    // Go on from these weights, with a fresh optimiser
    adopt(params) {
      this.params.set(params);
      this.ema.set(params);
      this.mean.fill(0);
      this.square.fill(0);
      this.steps = 0;
    }

    parts(array) {
      return this.layout.map((from, i) => array.subarray(from, this.layout[i + 1] ?? this.size));
    }

    // What the network sees of rows `from` to `from + n`: x / √(t² + σ²), ln t / 4, sin and cos
    feed(x, t, from, n) {
      for (let i = 0; i < n; i++) {
        const level = t[from + i], log = Math.log(level), o = i * IN;
        const {into} = precondition(level);
        this.input[o] = x[2 * (from + i)] * into;
        this.input[o + 1] = x[2 * (from + i) + 1] * into;
        this.input[o + 2] = log / 4;
        this.input[o + 3] = Math.sin(log);
        this.input[o + 4] = Math.cos(log);
      }
    }

    forward(params, n) {
      const {run, zeros} = this, at = array => array.byteOffset, rows = (n + 3) & ~3;
      const [w1, b1, w2, b2, w3, b3] = this.parts(params).map(at), [one, two] = this.hidden;
      run.matmul(at(this.input), 4 * IN, 4, w1, at(one.a), rows, IN, WIDTH, b1);
      run.silu(at(one.a), at(one.s), at(one.h), 4 * rows * WIDTH);
      run.matmul(at(one.h), 4 * WIDTH, 4, w2, at(two.a), rows, WIDTH, WIDTH, b2);
      run.silu(at(two.a), at(two.s), at(two.h), 4 * rows * WIDTH);
      run.matmul(at(two.h), 4 * WIDTH, 4, w3, at(this.output), rows, WIDTH, OUT, b3);
    }

    // Answers f(x, t) for rows `from` to `from + n` of x (N, 2) and t (N), at most `rows` of them
    answer(x, t, from, n, out, params) {
      this.feed(x, t, from, n);
      this.forward(params, n);
      for (let i = 0; i < n; i++) {
        const {skip, scale} = precondition(t[from + i], this.boundary), o = 2 * (from + i);
        out[o] = skip * x[o] + scale * this.output[OUT * i];
        out[o + 1] = skip * x[o + 1] + scale * this.output[OUT * i + 1];
      }
    }

    // f(x, t) for any number of rows
    f(x, t, params = this.ema, out = new Float32Array(x.length)) {
      for (let from = 0; from < t.length; from += this.rows)
        this.answer(x, t, from, Math.min(this.rows, t.length - from), out, params);
      return out;
    }

    // The denoiser whose weights were `kept`
    denoiser() {
      return (x, t) => {
        const {boundary} = this;
        this.boundary = true;
        const answers = this.f(x, t, this.kept);
        this.boundary = boundary;
        return answers;
      };
    }

    // From `pull`, d loss / d output of the rows last fed, to `grad`
    backward() {
      const {run, rows, zeros, turned} = this, at = array => array.byteOffset;
      const [w1, b1, w2, b2, w3, b3] = this.parts(this.grad).map(at), [one, two] = this.hidden;
      const weights = this.parts(this.params), none = at(zeros);
      transpose(weights[4], WIDTH, OUT, turned[1]);
      transpose(weights[2], WIDTH, WIDTH, turned[0]);
      run.matmul(at(two.h), 4, 4 * WIDTH, at(this.pull), w3, WIDTH, rows, OUT, none);
      run.columns(at(this.pull), b3, 4 * rows * OUT, 4 * OUT);
      run.matmul(at(this.pull), 4 * OUT, 4, at(turned[1]), at(two.d), rows, OUT, WIDTH, none);
      run.siluBack(at(two.a), at(two.s), at(two.d), 4 * rows * WIDTH);
      run.matmul(at(one.h), 4, 4 * WIDTH, at(two.d), w2, WIDTH, rows, WIDTH, none);
      run.columns(at(two.d), b2, 4 * rows * WIDTH, 4 * WIDTH);
      run.matmul(at(two.d), 4 * WIDTH, 4, at(turned[0]), at(one.d), rows, WIDTH, WIDTH, none);
      run.siluBack(at(one.a), at(one.s), at(one.d), 4 * rows * WIDTH);
      run.matmul(at(this.input), 4, 4 * IN, at(one.d), w1, IN, rows, WIDTH, none);
      run.columns(at(one.d), b1, 4 * rows * WIDTH, 4 * WIDTH);
    }

    optimise({rate, beta}) {
      const k = ++this.steps, at = array => array.byteOffset;
      const root = 1 / Math.sqrt(1 - BETA2 ** k), first = rate / (1 - BETA1 ** k);
      const arrays = [this.params, this.grad, this.mean, this.square, this.ema].map(at);
      this.run.adam(...arrays, 4 * this.size, first, root, beta);
    }
  }

  function transpose(a, rows, columns, out) {
    for (let i = 0; i < rows; i++)
      for (let j = 0; j < columns; j++) out[j * rows + i] = a[i * columns + j];
  }

  // ── What is learned ─────────────────────────────────────────────────────────────────────────

  // How much a row counts
  const WEIGHTS = {
    edm: (t, r) => 1 / (t * t) + 1 / (SIGMA * SIGMA),
    inverse_gap: (t, r) => 1 / (t - r),
    uniform: () => 1,
  };

  // Pseudo-Huber √(S + c²) - c, or S itself where c = 0; with the derivative by S
  function metric(S, c) {
    if (c === 0) return [S, 1];
    const root = Math.sqrt(S + c * c);
    return [S / (root + c), 0.5 / root];
  }

  // Points on the line x0 + level · eps
  function along(x0, level, eps, out) {
    for (let i = 0; i < level.length; i++)
      for (let j = 2 * i; j < 2 * i + 2; j++) out[j] = x0[j] + level[i] * eps[j];
    return out;
  }

  // One batch of the loss w(t, r) · metric(f(x_t, t) - f(x_r, r)), and its gradient in net.grad.
  // Where r = 0 the answer below is x0. `epsBelow` is the noise at r (the same, unless one
  // takes it away); `held`: the answer below is a target, which the gradient does not move.
  class Objective {
    constructor(net) {
      const n = net.rows, points = () => new Float32Array(2 * n);
      Object.assign(this, {net, above: points(), under: points(), upper: points(),
        lower: points(), pulls: points(), levels: new Float32Array(n)});
    }

    gradient({x0, t, r, eps, epsBelow = eps}, {weight, c = 0, held = true}) {
      const {net, above, under, upper, lower, levels, pulls} = this, n = net.rows;
      along(x0, t, eps, above);
      along(x0, r, epsBelow, under);
      const asks = r.some(level => level > 0);
      for (let i = 0; i < n; i++) levels[i] = Math.max(r[i], 1e-6);
      if (asks) net.answer(under, levels, 0, n, lower, net.params);
      for (let i = 0; i < n; i++)
        if (!(r[i] > 0)) lower.set(x0.subarray(2 * i, 2 * i + 2), 2 * i);
      net.answer(above, t, 0, n, upper, net.params);
      const loss = this.compare(t, r, WEIGHTS[weight], c);
      this.push(t, () => true, 1);
      if (!held && asks) this.alsoBelow(r);
      return loss;
    }

    // The loss, and in `pulls` its derivative by the answers above
    compare(t, r, weight, c) {
      const {upper, lower, pulls} = this, n = t.length;
      let total = 0;
      for (let i = 0, o = 0; i < n; i++, o += 2) {
        const dx = upper[o] - lower[o], dy = upper[o + 1] - lower[o + 1];
        const [value, slope] = metric(dx * dx + dy * dy, c), w = weight(t[i], r[i]) / n;
        total += w * value;
        pulls[o] = 2 * w * slope * dx;
        pulls[o + 1] = 2 * w * slope * dy;
      }
      return total;
    }

    // `pulls` on the answers last given, into net.grad
    push(level, counts, sign) {
      const {net, pulls} = this;
      for (let i = 0; i < level.length; i++) {
        const scale = counts(i) ? sign * precondition(level[i], net.boundary).scale : 0;
        net.pull[OUT * i] = scale * pulls[2 * i];
        net.pull[OUT * i + 1] = scale * pulls[2 * i + 1];
      }
      net.backward();
    }

    alsoBelow(r) {
      const {net, under, levels} = this, first = net.grad.slice();
      net.answer(under, levels, 0, r.length, new Float32Array(2 * r.length), net.params);
      this.push(levels, i => r[i] > 0, -1);
      for (let i = 0; i < first.length; i++) net.grad[i] += first[i];
    }
  }

  // ── Data: points in the plane, each of them a small bump ────────────────────────────────────

  class Bumps {
    constructor(points, std) {
      Object.assign(this, {points: Float32Array.from(points), std, n: points.length / 2});
    }

    sample(dice, n, out = new Float32Array(2 * n)) {
      for (let i = 0; i < n; i++) {
        const k = Math.floor(dice.uniform() * this.n);
        out[2 * i] = this.points[2 * k] + this.std * dice.normal();
        out[2 * i + 1] = this.points[2 * k + 1] + this.std * dice.normal();
      }
      return out;
    }

    // E[x0 given x_t = x], in closed form: each bump answers m + s²/(s² + t²) (x - m), and counts
    // by its posterior probability.
    denoise(x, y, t) {
      const {points, n} = this, s2 = this.std ** 2, variance = s2 + t * t;
      let sum = 0, mx = 0, my = 0, best = Infinity;
      for (let k = 0; k < n; k++) {
        const dx = x - points[2 * k], dy = y - points[2 * k + 1], d = dx * dx + dy * dy;
        if (d < best) best = d;
      }
      for (let k = 0; k < n; k++) {
        const dx = x - points[2 * k], dy = y - points[2 * k + 1];
        const p = Math.exp((best - dx * dx - dy * dy) / (2 * variance));
        sum += p;
        mx += p * points[2 * k];
        my += p * points[2 * k + 1];
      }
      const share = s2 / variance;
      return [mx / sum + share * (x - mx / sum), my / sum + share * (y - my / sum)];
    }

    // The path of the probability-flow ODE through T_MAX z, by Heun's method along `times`
    path(z, times) {
      let x = T_MAX * z[0], y = T_MAX * z[1];
      const slope = (x, y, t) => {
        const [u, v] = this.denoise(x, y, t);
        return [(x - u) / t, (y - v) / t];
      };
      const states = [[x, y]];
      for (let k = 0; k + 1 < times.length; k++) {
        const t = times[k], s = times[k + 1], [u, v] = slope(x, y, t);
        const [a, b] = s > 0 ? slope(x + (s - t) * u, y + (s - t) * v, s) : [u, v];
        x += (s - t) * (u + a) / 2;
        y += (s - t) * (v + b) / 2;
        states.push([x, y]);
      }
      return states;
    }
  }

  // ── From noise to data ──────────────────────────────────────────────────────────────────────
  // `z` standard normal (N, 2), as flat arrays

  // Karras et al. 2022, Eq. 5: n levels from T_MAX down to T_MIN, and 0
  function karras(n, rho = 7) {
    const [high, low] = [T_MAX ** (1 / rho), T_MIN ** (1 / rho)];
    const levels = Array.from({length: n}, (_, i) => (high + i / (n - 1) * (low - high)) ** rho);
    return [...levels, 0];
  }

  const scaled = (z, t) => z.map(v => v * t);
  const level = (t, n) => new Float32Array(n).fill(t);

  // Heun's walk: all states
  function walk(f, z, times) {
    const n = z.length / 2, states = [scaled(z, times[0])];
    for (let k = 0; k + 1 < times.length; k++) {
      const t = times[k], s = times[k + 1], x = states[k], y = new Float32Array(2 * n);
      const D = f(x, level(t, n));
      for (let i = 0; i < 2 * n; i++) y[i] = x[i] + (s - t) * (x[i] - D[i]) / t;
      if (s > 0) {
        const E = f(y, level(s, n));
        for (let i = 0; i < 2 * n; i++)
          y[i] = x[i] + (s - t) * ((x[i] - D[i]) / t + (y[i] - E[i]) / s) / 2;
      }
      states.push(y);
    }
    return states;
  }

  // One evaluation, and a further one at each of `more`, after fresh noise
  function jump(f, z, more = [], fresh = null) {
    const n = z.length / 2;
    let x = f(scaled(z, T_MAX), level(T_MAX, n));
    for (const t of more) x = f(x.map((v, i) => v + t * fresh[i]), level(t, n));
    return x;
  }

  // ── How far from the data ───────────────────────────────────────────────────────────────────

  // Squared W2 along `directions` lines, one number a line: on a line the best transport keeps
  // the order. As many points in a (N, 2) as in b.
  function sliced(a, b, directions = 32) {
    const n = a.length / 2;
    return Array.from({length: directions}, (_, k) => {
      const angle = Math.PI * (k + 0.5) / directions, c = Math.cos(angle), s = Math.sin(angle);
      const on = x => Float32Array.from({length: n}, (_, i) => c * x[2 * i] + s * x[2 * i + 1]);
      const p = on(a).sort(), q = on(b).sort();
      let sum = 0;
      for (let i = 0; i < n; i++) sum += (p[i] - q[i]) ** 2;
      return sum / n;
    });
  }

  const mean = values => values.reduce((a, b) => a + b, 0) / values.length;

  // The sliced W2 distance of `draws` independent pairs of samples: mean, and its 95 % interval
  // (Student, as many degrees of freedom as pairs less one)
  const STUDENT = [NaN, NaN, 12.71, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365];
  function distance(samples, data) {
    const found = samples.map((x, k) => Math.sqrt(mean(sliced(x, data[k])))), m = mean(found);
    const spread = Math.sqrt(found.reduce((a, d) => a + (d - m) ** 2, 0) / (found.length - 1));
    const half = STUDENT[found.length] * spread / Math.sqrt(found.length);
    return {mean: m, low: Math.max(0, m - half), high: m + half};
  }

  // Where the exact paths of z (N, 2) stand at rising `levels`, of which the first is 0
  function stations(data, z, levels, parts = 4) {
    const falling = [...levels].reverse(), times = falling.flatMap((t, k) => {
      const next = falling[k + 1];
      if (next === undefined) return [t];
      if (!next) return karras(3 * parts).map(v => v * t / T_MAX).slice(0, -1);
      return Array.from({length: parts}, (_, i) => t * (next / t) ** (i / parts));
    });
    const at = levels.map(t => times.reduce((best, s, k) =>
      Math.abs(s - t) < Math.abs(times[best] - t) ? k : best, 0));
    const states = levels.map(() => new Float32Array(z.length));
    for (let i = 0; i < z.length; i += 2) {
      const path = data.path([z[i], z[i + 1]], times);
      at.forEach((k, l) => states[l].set(path[k], i));
    }
    return states;
  }

  // Root mean square of f(x_t, t) - f(x_r, r) on these paths, per value, for all r < t
  function residuals(f, states, levels) {
    const n = states[0].length / 2;
    const answers = levels.map((t, k) => t > 0 ? f(states[k], level(t, n)) : states[k]);
    return levels.map((t, i) => levels.map((r, j) => {
      if (r >= t) return NaN;
      let sum = 0;
      for (let k = 0; k < 2 * n; k++) sum += (answers[i][k] - answers[j][k]) ** 2;
      return Math.sqrt(sum / (2 * n));
    }));
  }

  // ── A run: learn to denoise, then tighten ───────────────────────────────────────────────────

  // `steps` of a batch; ln t ~ N(center, spread²); the rate falls to its `last` share; `beta` of
  // the running average
  const LEARN = {steps: 4000, center: -0.6, spread: 1.8, rate: 4e-3, last: 0.1, beta: 0.99};
  const TIGHTEN = {steps: 12000, center: 0.3, spread: 2, rate: 5e-3, last: 0.05, beta: 0.995};
  const PLANS = {learn: LEARN, tighten: TIGHTEN};
  const LAST_STAGE = 6; // r = t (1 - 1/64)

  const USUAL = {
    seed: 1, stage: null, // null: in stages, by itself; a number: as the hand has it
    sameNoise: true, held: true, boundary: true, weight: 'inverse_gap', start: 'diffusion',
  };

  // r / t at a stage: 0, 1/2, 3/4, ... as `ConstantMapping(q=2)`
  const nearness = stage => 1 - 2 ** -stage;

  class Run {
    constructor(data, settings = {}, how = {}) {
      this.data = data;
      this.settings = {...USUAL, ...settings};
      this.net = new Net(how);
      this.objective = new Objective(this.net);
      this.plans = {...PLANS};
      this.restart();
    }

    restart() {
      this.dice = new Dice(this.settings.seed);
      this.net.boundary = true;
      this.net.begin(this.dice);
      const n = this.net.rows, pairs = () => new Float32Array(2 * n);
      this.batch = {x0: pairs(), eps: pairs(), other: pairs(),
        t: new Float32Array(n), r: new Float32Array(n)};
      this.phase = 'learn';
      this.done = {learn: 0, tighten: 0};
      this.denoiser = null; // its weights, once it is learnt
    }

    get plan() { return this.plans[this.phase]; }

    // With r in a hand, tightening goes on for as long as one likes
    get finished() {
      const byHand = this.phase === 'tighten' && this.settings.stage !== null;
      return !byHand && this.done[this.phase] >= this.plan.steps;
    }

    // From here on consistency, from the denoiser or from random weights; again, if asked again
    tighten() {
      if (this.phase === 'learn') this.net.kept.set(this.net.ema);
      this.denoiser = this.net.kept;
      this.net.boundary = this.settings.boundary;
      if (this.settings.start === 'scratch') this.net.begin(this.dice);
      else this.net.adopt(this.denoiser);
      this.phase = 'tighten';
      this.done.tighten = 0;
    }

    // The stage now, a number from 0 (a denoiser) to LAST_STAGE
    get stage() {
      if (this.phase === 'learn') return 0;
      if (this.settings.stage !== null) return this.settings.stage;
      const share = this.done.tighten / this.plan.steps;
      return Math.min(LAST_STAGE, 1 + Math.floor(share * LAST_STAGE));
    }

    draw() {
      const {dice, batch, plan} = this, q = nearness(this.stage);
      this.data.sample(dice, this.net.rows, batch.x0);
      for (let i = 0; i < batch.t.length; i++) {
        const t = Math.exp(plan.center + plan.spread * dice.normal());
        batch.t[i] = Math.min(T_MAX, Math.max(T_MIN, t));
        batch.r[i] = q * batch.t[i];
      }
      for (let i = 0; i < batch.eps.length; i++) batch.eps[i] = dice.normal();
      if (!this.settings.sameNoise)
        for (let i = 0; i < batch.eps.length; i++) batch.other[i] = dice.normal();
      return {...batch, epsBelow: this.settings.sameNoise ? batch.eps : batch.other};
    }

    step() {
      const {plan, settings} = this, learns = this.phase === 'learn';
      const loss = this.objective.gradient(this.draw(), {
        weight: learns ? 'edm' : settings.weight, c: plan.c ?? 0, held: learns || settings.held,
      });
      const share = Math.min(1, this.done[this.phase]++ / plan.steps);
      this.net.optimise({
        rate: plan.rate * (1 - (1 - plan.last) * share), beta: plan.beta,
      });
      return loss;
    }

    // Answers of the weights now (averaged), and of the denoiser it began from
    now() { return (x, t) => this.net.f(x, t); }

    before() { return this.denoiser ? this.net.denoiser() : this.now(); }
  }

  // ── A run at work: trains in slices, tells what it has reached, and measures ────────────────

  const SLICE = 12, NEWS = 33, MEASURE = 900; // milliseconds
  const SAMPLES = 500, DRAWS = 4, SECOND = 0.6; // of the distances; the level of the second step
  const WALK = karras(18);
  const LEVELS = [0, ...Array.from({length: 13}, (_, i) => 0.02 * (T_MAX / 0.02) ** (i / 12))];

  class Work {
    constructor(tell, slice = SLICE) {
      Object.assign(this, {tell, slice, playing: false, speed: 1e9, credit: 0});
      this.channel = new MessageChannel();
      this.channel.port1.onmessage = () => this.tick();
    }

    hear(message) { this[message.type](message); }

    begin({id, points, std, settings, plans}) {
      this.id = id;
      this.run = new Run(new Bumps(points, std), settings, {});
      Object.assign(this.run.plans, plans);
      Object.assign(this, {playing: false, losses: [], kept: {}, measured: 0, cost: 0, rate: 0});
      this.news();
    }

    change({settings}) {
      Object.assign(this.run.settings, settings);
      this.run.net.boundary = this.run.phase === 'learn' || this.run.settings.boundary;
      if (this.run.finished) this.playing = false;
      if (!this.playing) this.news();
    }

    pace({speed}) { this.speed = speed; }

    play({phase}) {
      this.turn(phase);
      const was = this.playing;
      Object.assign(this, {playing: true, last: performance.now(), told: 0, credit: 0});
      if (!was) this.tick();
    }

    pause() {
      if (!this.playing) return;
      this.playing = false;
      this.news();
      this.measure();
    }

    step({phase}) {
      this.turn(phase);
      this.playing = false;
      this.losses.push(this.run.step());
      this.news();
      this.measure();
    }

    turn(phase) {
      const {run} = this;
      if (phase === 'tighten' && (run.phase === 'learn' || run.finished)) run.tighten();
    }

    close() {
      this.playing = false;
      this.channel.port1.close();
    }

    tick() {
      if (!this.playing) return;
      const began = performance.now();
      const made = this.train(began);
      if (this.run.finished) this.playing = false;
      const now = performance.now();
      if (now - this.told > NEWS || !this.playing) this.news();
      if (now - this.measured > Math.max(MEASURE, 10 * this.cost) || !this.playing) this.measure();
      if (made) this.channel.port2.postMessage(0);
      else setTimeout(() => this.tick(), 8);
    }

    train(began) {
      const passed = (began - this.last) / 1000, {run} = this;
      this.credit = Math.min(this.credit + passed * this.speed, Math.max(1, 0.1 * this.speed));
      this.last = began;
      let made = 0;
      while (made + 1 <= this.credit && performance.now() - began < this.slice) {
        this.losses.push(run.step());
        made++;
        if (run.finished) break;
      }
      this.credit -= made;
      if (passed > 0) this.rate = 0.9 * this.rate + 0.1 * made / Math.max(passed, 0.004);
      return made;
    }

    news() {
      const {run, id, losses, playing} = this;
      const loss = losses.length ? mean(losses) : null;
      this.losses = [];
      this.told = performance.now();
      this.tell({
        type: 'news', id, playing, loss, phase: run.phase, done: {...run.done}, stage: run.stage,
        share: Math.min(1, run.done[run.phase] / run.plan.steps), finished: run.finished,
        params: run.net.ema.slice(), denoiser: run.denoiser?.slice(), boundary: run.net.boundary,
      });
    }

    measure() {
      const began = performance.now(), {run, kept} = this, dice = new Dice(run.settings.seed + 7);
      const n = run.net.fast ? SAMPLES : SAMPLES / 4, size = 2 * n; // without WebAssembly fewer
      const draws = Array.from({length: DRAWS}, () => ({
        z: dice.normals(size), fresh: dice.normals(size), data: run.data.sample(dice, n),
        again: run.data.sample(dice, n),
      }));
      const to = make => distance(draws.map(make), draws.map(d => d.data)), f = run.now();
      kept.floor ??= to(d => d.again);
      if (run.phase === 'learn' || !kept.learnt) {
        kept.walk = to(d => walk(run.before(), d.z, WALK).at(-1));
        kept.denoiser = to(d => jump(run.before(), d.z));
      }
      kept.learnt = run.phase !== 'learn';
      kept.stations ??= stations(run.data, dice.normals(256), LEVELS);
      const {floor, walk: walked, denoiser, stations: places} = kept;
      this.tell({
        type: 'measures', id: this.id, phase: run.phase, done: {...run.done},
        floor, walk: walked, denoiser, one: to(d => jump(f, d.z)),
        two: to(d => jump(f, d.z, [SECOND], d.fresh)), residuals: residuals(f, places, LEVELS),
      });
      this.measured = performance.now();
      this.cost = this.measured - began;
    }
  }

  return {
    Dice, Net, Objective, Bumps, Run, Work,
    karras, walk, jump, sliced, distance, stations, residuals,
    T_MAX, T_MIN, SIGMA, SECOND, WALK, LEVELS, LAST_STAGE, USUAL, nearness,
    PLANS,
  };
}

const E = engine();

// ── Data to begin with ────────────────────────────────────────────────────────────────────────

const REACH = 1.15; // the plane shown is [-REACH, REACH]²
const PEN = 0.03, MOST = 400; // width of a drawn point, and how many there may be

const circle = (n, draw) => Array.from({length: n}, (_, i) => draw((i + 0.5) / n)).flat();

const PRESETS = {
  moons: {std: 0.04, points: () => [
    ...circle(150, u => [0.55 * Math.cos(Math.PI * u) - 0.27, 0.55 * Math.sin(Math.PI * u) - 0.14]),
    ...circle(150, u => [0.27 - 0.55 * Math.cos(Math.PI * u), 0.14 - 0.55 * Math.sin(Math.PI * u)]),
  ]},
  ring: {std: 0.03, points: () =>
    circle(240, u => [0.75 * Math.cos(2 * Math.PI * u), 0.75 * Math.sin(2 * Math.PI * u)])},
  spiral: {std: 0.025, points: () => circle(300, u => {
    const a = 0.5 + 9.4 * Math.sqrt(u);
    return [a / 11 * Math.cos(a), a / 11 * Math.sin(a)];
  })},
  checkerboard: {std: 0.03, points: () =>
    Array.from({length: 24 * 24}, (_, k) => [k % 24, Math.floor(k / 24)])
      .filter(([i, j]) => (Math.floor(i / 6) + Math.floor(j / 6)) % 2 === 0)
      .flatMap(([i, j]) => [(i - 11.5) / 14, (j - 11.5) / 14])},
  mixture: {std: 0.09, points: () => [0.7, 0.35, -0.1, 0.75, -0.75, 0.2, -0.35, -0.6, 0.5, -0.55]},
};

const LABELS = {moons: 'Moons', ring: 'Ring', spiral: 'Spiral', checkerboard: 'Checkers',
  mixture: 'Mixture', drawn: 'Your own'};

// ── A link that carries the whole Lab ─────────────────────────────────────────────────────────
// lab=1&data=moons&seed=1&z=0.7,0.5&…: readable, and drawn points as one byte a coordinate

const PIECES = ['sameNoise', 'held', 'boundary']; // switches that are on unless taken away

function encodeLink({data, points, settings, z}) {
  const link = new URLSearchParams({lab: 1, data, seed: settings.seed});
  link.set('z', Array.from(z, v => v.toFixed(2)).join(','));
  const off = PIECES.filter(name => !settings[name]);
  if (off.length) link.set('without', off.join(','));
  if (settings.weight !== E.USUAL.weight) link.set('weight', settings.weight);
  if (settings.start !== E.USUAL.start) link.set('start', settings.start);
  if (settings.stage !== null) link.set('stage', settings.stage);
  if (data === 'drawn') link.set('points', packed(points));
  return link.toString();
}

function packed(points) {
  const bytes = Array.from(points, v =>
    Math.round((Math.min(REACH, Math.max(-REACH, v)) + REACH) / (2 * REACH) * 255));
  const text = btoa(String.fromCharCode(...bytes));
  return text.replace(/\+/g, '-').replace(/\//g, '_').replace(/=/g, '');
}

function unpacked(text) {
  const plain = atob(text.replace(/-/g, '+').replace(/_/g, '/'));
  return Array.from(plain, c => c.charCodeAt(0) / 255 * 2 * REACH - REACH);
}

// What a link says, or null if it is none; an Error if it is damaged
function decodeLink(text) {
  const link = new URLSearchParams(text.replace(/^.*#/, ''));
  if (!link.has('lab')) return null;
  const data = link.get('data'), z = (link.get('z') ?? '0.7,0.9').split(',').map(Number);
  const without = (link.get('without') ?? '').split(',').filter(Boolean);
  const settings = {...E.USUAL, seed: Number(link.get('seed') ?? 1)};
  for (const name of without) settings[name] = false;
  if (link.has('weight')) settings.weight = link.get('weight');
  if (link.has('start')) settings.start = link.get('start');
  if (link.has('stage')) settings.stage = Number(link.get('stage'));
  const points = data === 'drawn' ? unpacked(link.get('points') ?? '') : null;
  const sound = [
    data in LABELS, link.get('lab') === '1', without.every(name => PIECES.includes(name)),
    Number.isInteger(settings.seed) && settings.seed >= 0 && settings.seed < 2 ** 31,
    ['inverse_gap', 'uniform'].includes(settings.weight),
    ['diffusion', 'scratch'].includes(settings.start),
    settings.stage === null || (settings.stage >= 0 && settings.stage <= E.LAST_STAGE),
    z.length === 2 && z.every(v => Math.abs(v) < 10),
    !points || (points.length % 2 === 0 && points.length <= 2 * MOST),
  ];
  if (!sound.every(Boolean)) throw new Error('damaged');
  return {data, settings, points, z};
}

// ── Who trains: a Worker, or this thread where there can be none ──────────────────────────────

function employ(hear) {
  const sent = [];
  let send, stop;
  const here = () => {
    const work = new E.Work(message => setTimeout(() => hear(message)), 8);
    send = message => work.hear(message);
    stop = () => work.close();
    sent.forEach(send);
  };
  try {
    const code = `const {Work} = (${engine})(), work = new Work(m => postMessage(m));
      onmessage = event => work.hear(event.data);`;
    const url = URL.createObjectURL(new Blob([code], {type: 'text/javascript'}));
    const worker = new Worker(url);
    worker.onmessage = event => hear(event.data);
    worker.onerror = event => { event.preventDefault(); worker.terminate(); here(); };
    send = message => worker.postMessage(message);
    stop = () => { worker.terminate(); URL.revokeObjectURL(url); };
  } catch {
    here();
  }
  return {
    tell(message) {
      if (message.type === 'begin') sent.length = 0;
      sent.push(message);
      send(message);
    },
    stop: () => stop(),
  };
}

// ── Colours ───────────────────────────────────────────────────────────────────────────────────

// Okabe & Ito: black the exact path, vermillion the denoiser, blue one step, green two
const THEMES = {
  light: {ink: '#1c2024', soft: '#59626b', line: '#dfe3e6', paper: '#ffffff', faint: '#f5f6f7',
    data: '#d4d7da', before: '#D55E00', one: '#0072B2', two: '#009E73', bright: 0.66},
  dark: {ink: '#eef1f3', soft: '#a6b0b8', line: '#30373d', paper: '#14181b', faint: '#1c2125',
    data: '#434b52', before: '#F28444', one: '#56B4E9', two: '#3CC9A0', bright: 0.76},
};

// OKLCH to sRGB (Ottosson 2020): even steps look even
function oklch(l, c, h) {
  const a = c * Math.cos(h), b = c * Math.sin(h);
  const x = (l + 0.3963377774 * a + 0.2158037573 * b) ** 3;
  const y = (l - 0.1055613458 * a - 0.0638541728 * b) ** 3;
  const z = (l - 0.0894841775 * a - 1.291485548 * b) ** 3;
  const linear = [
    4.0767416621 * x - 3.3077115913 * y + 0.2309699292 * z,
    -1.2684380046 * x + 2.6097574011 * y - 0.3413193965 * z,
    -0.0041960863 * x - 0.7034186147 * y + 1.707614701 * z,
  ];
  return linear.map(v => {
    const clipped = Math.min(1, Math.max(0, v));
    const curved = clipped > 0.0031308 ? 1.055 * clipped ** (1 / 2.4) - 0.055 : 12.92 * clipped;
    return Math.round(255 * curved);
  });
}

// The colour of a place in the plane: hue by angle, grey in the middle
class Palette {
  constructor(bright, size = 96) {
    this.size = size;
    this.rgb = Array.from({length: size * size}, (_, k) => {
      const x = ((k % size) + 0.5) / size * 2 - 1, y = (Math.floor(k / size) + 0.5) / size * 2 - 1;
      const far = Math.min(1, Math.hypot(x, y) * REACH / 0.6);
      return oklch(bright, 0.17 * far ** 0.7, Math.atan2(y, x) + 0.6);
    });
    this.css = this.rgb.map(([r, g, b]) => `rgb(${r},${g},${b})`);
  }

  index(x, y) {
    const cell = v => Math.min(this.size - 1, Math.max(0,
      Math.floor((v / REACH + 1) / 2 * this.size)));
    return cell(y) * this.size + cell(x);
  }
}

// ── The page ──────────────────────────────────────────────────────────────────────────────────

const STYLE = `
.ect-lab { container-type: inline-size; font: 15px/1.5 system-ui, "Segoe UI", Roboto, sans-serif;
  color: var(--ink); background: var(--paper); box-sizing: border-box;
  padding: 20px clamp(12px, 2vw, 24px) 16px;
  max-width: 1200px; margin: 0 auto; font-variant-numeric: tabular-nums; }
.ect-lab *, .ect-lab *::before { box-sizing: border-box; }
.ect-lab .title { font-size: 28px; line-height: 1.15; font-weight: 650; letter-spacing: -.015em;
  margin: 0; color: var(--ink); }
.ect-lab .name { margin: 0; font-size: 17px; font-weight: 600; color: var(--ink); }
.ect-lab p { margin: 0; color: inherit; }
.ect-lab figure { margin: 0; min-width: 0; }
.ect-lab small { color: var(--soft); font-size: 12px; font-weight: 400; }
.ect-lab fieldset { border: 0; margin: 0; padding: 0; min-width: 0; }
.ect-lab .unseen, .ect-lab .choice input, .ect-lab .shapes input { position: absolute; width: 1px;
  height: 1px; overflow: hidden; clip-path: inset(50%); margin: 0; }
.ect-lab [hidden] { display: none !important; }
.ect-lab .top { display: grid; grid-template-columns: 1fr auto; align-items: center;
  gap: 2px 16px; }
.ect-lab .lead { color: var(--soft); font-size: 16px; grid-column: 1 / -1; }
.ect-lab .row, .ect-lab .tools { display: flex; gap: 10px; align-items: center; flex-wrap: wrap; }
.ect-lab .tools { flex-wrap: nowrap; }

.ect-lab button { font: inherit; font-size: 14px; color: var(--ink); background: var(--paper);
  border: 1px solid var(--line); border-radius: 8px; padding: 5px 12px; min-height: 34px;
  cursor: pointer; white-space: nowrap; }
.ect-lab button:hover { border-color: var(--soft); }
.ect-lab button:disabled { opacity: .45; cursor: default; }
.ect-lab .go { font-weight: 600; min-width: 104px; border-color: var(--one); color: var(--one); }
.ect-lab .current .go { background: var(--one); color: var(--paper); }
.ect-lab :is(button, input, canvas, summary):focus-visible,
.ect-lab label:has(input:focus-visible) { outline: 3px solid #E69F00; outline-offset: 2px; }
.ect-lab input[type=range] { accent-color: var(--one); flex: 1; min-width: 60px; height: 28px;
  margin: 0; width: 100%; }
.ect-lab input[type=checkbox] { accent-color: var(--one); width: 16px; height: 16px; margin: 0; }
.ect-lab progress { flex: 1; min-width: 60px; height: 6px; appearance: none; border: 0;
  background: var(--line); border-radius: 3px; overflow: hidden; }
.ect-lab progress::-webkit-progress-bar { background: var(--line); }
.ect-lab progress::-webkit-progress-value { background: var(--one); }
.ect-lab progress::-moz-progress-bar { background: var(--one); }
.ect-lab output { color: var(--soft); font-size: 14px; }
.ect-lab .hint { color: var(--soft); font-size: 13px; }

.ect-lab .steps { list-style: none; margin: 18px 0 0; padding: 0; display: grid; gap: 28px;
  grid-template-columns: 1.25fr 1fr 1.15fr; }
.ect-lab .step { border-top: 2px solid var(--line); padding-top: 10px; min-width: 0; margin: 0; }
.ect-lab .step.current { border-color: var(--one); }
.ect-lab .tab { font: inherit; border: 0; padding: 0; min-height: 0; background: none;
  cursor: default; color: inherit; display: flex; align-items: center; gap: 8px; }
.ect-lab .tab b { display: inline-grid; place-items: center; width: 24px; height: 24px;
  border-radius: 50%; font-size: 13px; border: 1.5px solid var(--soft); color: var(--soft); }
.ect-lab .current .tab b { background: var(--one); border-color: var(--one); color: var(--paper); }
.ect-lab .done:not(.current) .tab b { border-color: var(--two); color: var(--two); }
.ect-lab .body { margin-top: 8px; display: grid; gap: 8px; color: var(--soft); font-size: 14px;
  line-height: 1.4; }
.ect-lab .shapes { display: flex; flex-wrap: wrap; gap: 6px 2px; }
.ect-lab .shapes label { display: grid; justify-items: center; gap: 1px; width: 60px;
  padding: 4px 0 3px; border: 1px solid transparent; border-radius: 8px; cursor: pointer;
  font-size: 12px; color: var(--soft); position: relative; }
.ect-lab .shapes label:hover { background: var(--faint); }
.ect-lab .shapes label:has(:checked) { border-color: var(--one); color: var(--ink); }
.ect-lab .shapes svg { width: 38px; height: 38px; fill: var(--soft); }
.ect-lab .shapes label:has(:checked) svg { fill: var(--one); }
.ect-lab .pull { display: flex; gap: 8px; align-items: center; color: var(--ink); }
.ect-lab .check { display: inline-flex; gap: 6px; align-items: center; margin-left: auto; }
.ect-lab .says { margin: 16px 0 12px; padding: 9px 14px; background: var(--faint);
  border-radius: 8px; min-height: 42px; }

.ect-lab .stage { display: grid; gap: 20px 28px; align-items: start;
  grid-template-columns: 240px minmax(0, 1fr) 324px; grid-template-areas: "noise plane charts"; }
.ect-lab .plane { grid-area: plane; }
.ect-lab .noise { grid-area: noise; }
.ect-lab .charts { grid-area: charts; display: grid; gap: 12px; }
.ect-lab figcaption { font-size: 14px; font-weight: 600; margin-bottom: 6px; min-height: 22px;
  color: var(--ink); text-align: left; }
.ect-lab .plane figcaption { display: flex; justify-content: space-between; gap: 8px;
  flex-wrap: wrap; }
.ect-lab canvas { display: block; width: 100%; aspect-ratio: 1; border-radius: 10px;
  background: var(--faint); touch-action: pan-y; }
.ect-lab .noise canvas { touch-action: none; cursor: grab; border-radius: 50%; }
.ect-lab canvas.pen { touch-action: none; cursor: crosshair; }
.ect-lab .flow { margin-top: 8px; flex-wrap: nowrap; }
.ect-lab .flow output { min-width: 74px; }
.ect-lab .flow button { min-width: 40px; padding: 0; }
.ect-lab svg { display: block; width: 100%; overflow: visible; }
.ect-lab svg text { font-size: 12px; fill: var(--soft); }
.ect-lab .choice { display: inline-flex; align-items: center; gap: 2px; background: var(--faint);
  border-radius: 8px; padding: 2px; position: relative; }
.ect-lab .choice legend { float: left; padding: 0 8px; font-size: 14px; color: var(--soft); }
.ect-lab .choice label { cursor: pointer; border-radius: 6px; position: relative; }
.ect-lab .choice span { display: block; padding: 3px 11px; font-size: 14px; font-weight: 400;
  color: var(--soft); border-radius: 6px; white-space: nowrap; }
.ect-lab .choice :checked + span { background: var(--paper); color: var(--ink);
  box-shadow: 0 0 0 1px var(--line); font-weight: 600; }
.ect-lab .marks { list-style: none; margin: 12px 0 0; padding: 0; font-size: 14px; display: grid;
  gap: 3px; }
.ect-lab .marks li { display: flex; gap: 8px; align-items: center; margin: 0; color: var(--ink); }
.ect-lab .marks svg { width: 18px; height: 18px; flex: none; }
.ect-lab .marks span:last-child { margin-left: auto; color: var(--soft); }
.ect-lab .transport { margin-top: 18px; padding-top: 14px; border-top: 1px solid var(--line); }
.ect-lab .seed { font-size: 14px; color: var(--soft); }
.ect-lab .seed input { font: inherit; width: 84px; min-height: 34px; padding: 2px 8px;
  color: var(--ink); background: var(--paper); border: 1px solid var(--line); border-radius: 8px; }
.ect-lab .count { margin-left: auto; }
.ect-lab .pieces { margin-top: 12px; }
.ect-lab .pieces summary { cursor: pointer; font-weight: 600; padding: 6px 0; }
.ect-lab .switches { display: grid; grid-template-columns: repeat(auto-fit, minmax(300px, 1fr));
  gap: 8px 28px; margin: 8px 0; }
.ect-lab .switches label { position: relative; padding-left: 26px; font-size: 14px;
  color: var(--soft); }
.ect-lab .switches input { position: absolute; left: 0; top: 3px; }
.ect-lab .switches b { color: var(--ink); font-weight: 600; }

@container (max-width: 1040px) {
  .ect-lab .stage { grid-template-columns: minmax(0, 1fr) 210px;
    grid-template-areas: "plane noise" "charts charts"; }
  .ect-lab .charts { grid-template-columns: repeat(3, minmax(0, 1fr)); gap: 20px; }
  .ect-lab .charts small { display: block; }
  .ect-lab .steps { gap: 18px; }
}
@container (max-width: 720px) {
  .ect-lab .lead { font-size: 15px; }
  .ect-lab .steps { grid-template-columns: repeat(3, 1fr); gap: 0 10px; }
  .ect-lab .step { display: contents; }
  .ect-lab .step .name { grid-row: 1; border-top: 2px solid var(--line); padding-top: 8px; }
  .ect-lab .step.open .name { border-color: var(--one); }
  .ect-lab .tab { cursor: pointer; min-height: 34px; width: 100%; }
  .ect-lab .body { grid-row: 2; grid-column: 1 / -1; }
  .ect-lab .step:not(.open) .body { display: none; }
  .ect-lab .shapes { justify-content: space-between; gap: 2px; }
  .ect-lab .shapes label { width: 51px; font-size: 11px; white-space: nowrap; }
  .ect-lab .stage { grid-template-columns: minmax(0, 1fr);
    grid-template-areas: "plane" "noise" "charts"; }
  .ect-lab .noise { display: grid; grid-template-columns: 42% 1fr; gap: 0 16px;
    align-items: center; }
  .ect-lab .noise figcaption { grid-column: 1 / -1; }
  .ect-lab .marks { margin: 0; font-size: 13px; }
  .ect-lab .marks li { gap: 6px; }
  .ect-lab .charts { grid-template-columns: minmax(0, 1fr); }
  .ect-lab .count { margin-left: 0; }
  .ect-lab .choice span { padding: 3px 8px; }
  .ect-lab .plane figcaption { flex-wrap: nowrap; }
}
`;

const PAGE = `
<header class="top">
  <hTOP class="title">The Lab</hTOP>
  <div class="tools">
    <button type="button" data-part="share">Copy link</button>
    <button type="button" data-part="theme" aria-pressed="false">Dark</button>
  </div>
  <p class="lead">Noise becomes data in many small steps. Tighten one condition, and a single step
    is enough.</p>
</header>
<ol class="steps">
  <li class="step" data-step="draw">
    <hSUB class="name">
      <button type="button" class="tab" data-tab="draw"><b>1</b> Draw</button>
    </hSUB>
    <div class="body">
      <fieldset class="shapes" data-part="shapes"><legend class="unseen">Data</legend></fieldset>
      <div class="row" data-part="penTools" hidden>
        <button type="button" data-part="undo">Undo</button>
        <button type="button" data-part="clear">Clear</button>
        <span class="hint">Draw on the big plane, or move with the arrow keys and hold Space
          down.</span>
      </div>
    </div>
  </li>
  <li class="step" data-step="learn">
    <hSUB class="name">
      <button type="button" class="tab" data-tab="learn"><b>2</b> Learn</button>
    </hSUB>
    <div class="body">
      <p>A network learns to denoise: from which data did this noise come, on average?</p>
      <div class="row"><button type="button" class="go" data-part="learn">Learn</button>
        <progress data-part="learnt" max="1" value="0" aria-label="learnt so far"></progress></div>
    </div>
  </li>
  <li class="step" data-step="tighten">
    <hSUB class="name">
      <button type="button" class="tab" data-tab="tighten"><b>3</b> Tighten</button>
    </hSUB>
    <div class="body">
      <p>Its answer at <i>t</i> must be its own answer at <i>r</i>, on the same path. Pull
        <i>r</i> towards <i>t</i>.</p>
      <div class="pull"><span aria-hidden="true">0</span>
        <input type="range" data-part="stage" min="0" max="6" step="0.05" value="0"
          aria-label="how near r is to t">
        <span aria-hidden="true"><i>t</i></span></div>
      <div class="row"><button type="button" class="go" data-part="tighten">Tighten</button>
        <output data-part="ratio"></output>
        <label class="check"><input type="checkbox" data-part="auto" checked> by itself</label>
      </div>
    </div>
  </li>
</ol>
<p class="says" data-part="says" role="status"></p>
<div class="stage">
  <figure class="plane">
    <figcaption>
      <fieldset class="choice" data-part="modes">
        <legend class="unseen">From noise to data by</legend>
        <label><input type="radio" name="NAME-mode" value="walk" checked><span>Walk</span></label>
        <label><input type="radio" name="NAME-mode" value="one"><span>One step</span></label>
        <label><input type="radio" name="NAME-mode" value="two"><span>Two steps</span></label>
      </fieldset>
      <fieldset class="choice" data-part="looks"><legend class="unseen">Shown as</legend>
        <label><input type="radio" name="NAME-look" value="cloud" checked><span>Cloud</span></label>
        <label><input type="radio" name="NAME-look" value="grid"><span>Grid</span></label>
      </fieldset>
    </figcaption>
    <canvas data-part="plane" tabindex="0" role="img"></canvas>
    <div class="row flow">
      <button type="button" data-part="play" aria-label="let the noise flow">▶</button>
      <input type="range" data-part="flow" min="0" max="1" step="0.005" value="0"
        aria-label="from noise to data">
      <output data-part="level"></output>
    </div>
  </figure>
  <figure class="noise">
    <figcaption>Drag a point of noise</figcaption>
    <canvas data-part="noise" tabindex="0" role="application"
      aria-label="Plane of noise. The arrow keys move the point you hold."></canvas>
    <ul class="marks" data-part="marks"></ul>
  </figure>
  <div class="charts">
    <figure><figcaption>Distance to the data <small>sliced W₂, ± 95 %</small></figcaption>
      <svg data-part="distances" role="img"></svg></figure>
    <figure><figcaption>Disagreement <small>of f at t and at r, on one path</small></figcaption>
      <svg data-part="residuals" role="img"></svg></figure>
    <figure><figcaption>Loss</figcaption><svg data-part="loss" role="img"></svg></figure>
  </div>
</div>
<div class="row transport">
  <button type="button" data-part="single">Single step</button>
  <button type="button" data-part="again">Start again</button>
  <fieldset class="choice" data-part="speeds"><legend>Speed</legend>
    <label><input type="radio" name="NAME-speed" value="60"><span>slow</span></label>
    <label><input type="radio" name="NAME-speed" value="800" checked><span>steady</span></label>
    <label><input type="radio" name="NAME-speed" value="1e9"><span>fast</span></label>
  </fieldset>
  <label class="seed">Seed
    <input type="number" data-part="seed" min="0" max="999999" value="1"></label>
  <output class="count" data-part="count"></output>
</div>
<details class="pieces" data-part="pieces">
  <summary>Take something away, and see what it was for</summary>
  <div class="switches">
    <label><input type="checkbox" data-piece="sameNoise" checked><b>the same noise</b>
      at t and at r: it says which path is meant</label>
    <label><input type="checkbox" data-piece="held" checked><b>the target held still</b>:
      only the answer at t moves (stop-gradient)</label>
    <label><input type="checkbox" data-piece="boundary" checked><b>the boundary</b>
      f(x, 0) = x: paths end at the data</label>
    <label><input type="checkbox" data-piece="weight" checked><b>the weight</b> 1 / (t − r): small
      gaps count as much as wide ones</label>
    <label><input type="checkbox" data-piece="start" checked><b>the start from diffusion</b>:
      without it, from random weights</label>
  </div>
  <p class="hint">A change takes hold at once; the last one when Tighten begins anew.</p>
</details>
`;

const short = v => (v < 0.0995 ? v.toFixed(3) : v.toFixed(2)).replace(/^0/, '');
const signed = v => v.toFixed(2).replace('-', '−');

// At its natural size, where noise of every level is equally wide
const natural = (v, t) => v * E.SIGMA / Math.sqrt(E.SIGMA ** 2 + t * t);

const CLOUD = 800; // points of noise on show
const FIELD = 40, WIDE = 2.5; // cells of the noise plane, and how far it reaches
const MODES = {
  walk: 'the walk, 35 evaluations', one: 'one step, 1 evaluation', two: 'two steps, 2 evaluations',
};

let labs = 0;

class Lab {
  constructor(host, options) {
    this.options = options;
    this.name = `lab${++labs}`; // radio buttons of two Labs on one page keep apart
    this.root = document.createElement('section');
    this.root.className = 'ect-lab';
    this.root.setAttribute('aria-label', 'The Lab');
    this.root.dataset.lmSuppressShortcuts = true; // in JupyterLab keys are the Lab's
    const level = options.level ?? 2;
    this.root.innerHTML = `<style>${STYLE}</style>` + PAGE.replaceAll('NAME', this.name)
      .replaceAll('hTOP', `h${level}`).replaceAll('hSUB', `h${level + 1}`);
    host.append(this.root);
    this.still = matchMedia('(prefers-reduced-motion: reduce)');
    this.findParts();
    this.begin();
    this.wire();
    this.adoptTheme();
    this.restore();
    this.frame = requestAnimationFrame(now => this.tick(now));
  }

  findParts() {
    const find = name => this.root.querySelector(`[data-part="${name}"]`);
    const names = [...this.root.querySelectorAll('[data-part]')].map(e => e.dataset.part);
    this.parts = Object.fromEntries(names.map(name => [name, find(name)]));
  }

  begin() {
    const dice = new E.Dice(4);
    this.noise = dice.normals(2 * CLOUD);
    this.fresh = dice.normals(2 * CLOUD);
    this.net = new E.Net();
    this.trainer = employ(message => this.hear(message));
    Object.assign(this, {
      settings: {...E.USUAL}, data: 'moons', drawn: [], strokes: [], z: [0.7, 0.9],
      mode: 'walk', look: 'cloud', flow: 0, flows: false, speed: 800, id: 0,
      pen: {x: 0, y: 0, down: false, drawing: false}, frames: [], dirty: true, version: 0,
    });
  }

  $(name) { return this.parts[name]; }

  // ── What it is about: data, settings, a fresh run ──

  choose(data) {
    this.data = data;
    this.restart();
  }

  points() {
    if (this.data === 'drawn') return this.drawn;
    return PRESETS[this.data].kept ??= PRESETS[this.data].points();
  }

  restart() {
    const points = this.points(), std = this.data === 'drawn' ? PEN : PRESETS[this.data].std;
    const enough = points.length >= 4;
    this.bumps = enough ? new E.Bumps(points, std) : null;
    this.news = null;
    this.exact = null;
    this.history = {loss: new Record(), walk: new Record(), before: new Record(),
      one: new Record(), two: new Record()};
    this.measures = null;
    this.id++;
    this.setMode('walk', false);
    this.flow = 0;
    if (enough) this.trainer.tell({type: 'begin', id: this.id, points: Float32Array.from(points),
      std, settings: this.settings, plans: this.options.plans});
    else this.trainer.tell({type: 'pause'});
    this.remember();
    this.refresh();
  }

  change(settings) {
    Object.assign(this.settings, settings);
    this.trainer.tell({type: 'change', settings: this.settings});
    this.remember();
    this.refresh();
  }

  get phase() { return this.news?.phase ?? 'learn'; }

  get step() { // which of the three steps is to be done now
    if (!this.bumps || (this.pen.drawing && !this.news?.done.learn)) return 'draw';
    const n = this.news;
    return !n || (n.phase === 'learn' && !n.finished) ? 'learn' : 'tighten';
  }

  // ── Hearing from the trainer ──

  hear(message) {
    if (message.id !== this.id) return;
    if (message.type === 'news') this.hearNews(message);
    else this.hearMeasures(message);
    this.dirty = true;
  }

  hearNews(news) {
    const before = this.news;
    this.news = news;
    this.net.ema.set(news.params);
    this.net.boundary = news.boundary;
    if (news.denoiser) this.net.kept.set(news.denoiser);
    this.version++;
    if (news.loss !== null) this.history.loss.push(this.position(news.done), news.loss);
    if (before?.done.tighten > news.done.tighten) this.forgetTightening(news);
    const turned = before && before.phase !== news.phase;
    if (turned) this.setMode('one', false);
    if (turned || !before || before.playing !== news.playing || before.finished !== news.finished)
      this.refresh();
  }

  forgetTightening({done}) { // it has begun anew
    for (const name of ['one', 'two']) this.history[name] = new Record();
    const {loss} = this.history;
    loss.items = loss.items.filter(([at]) => at <= done.learn);
  }

  hearMeasures(m) {
    this.measures = m;
    const at = this.position(m.done), {history} = this;
    history.walk.push(at, m.walk);
    (m.phase === 'learn' ? history.before : history.one).push(at, m.one);
    if (m.phase !== 'learn') history.two.push(at, m.two);
    this.say();
    this.drawCharts();
  }

  // Steps of both plans, or as many as have been made
  get total() {
    const plans = {...E.PLANS, ...this.options.plans};
    const made = this.news ? this.position(this.news.done) : 0;
    return Math.max(plans.learn.steps + plans.tighten.steps, made);
  }

  position(done) { return done.learn + done.tighten; }

  // ── Answers of the network ──

  f() { return (x, t) => this.net.f(x, t); }

  denoiser() {
    return this.phase === 'learn' ? this.f() : this.net.denoiser();
  }

  // From noise z (N, 2) to data, as states at their natural size; the last is where it ends
  journey(z, fresh) {
    const start = z.map(v => natural(E.T_MAX * v, E.T_MAX));
    if (!this.bumps || !this.news) return [start];
    if (this.mode === 'walk') {
      const states = E.walk(this.denoiser(), z, E.WALK);
      return states.map((x, k) => x.map(v => natural(v, E.WALK[k])));
    }
    const first = E.jump(this.f(), z);
    if (this.mode === 'one') return [start, first];
    const back = first.map((v, i) => v + E.SECOND * fresh[i]);
    return [start, first, back.map(v => natural(v, E.SECOND)),
      this.f()(back, new Float32Array(z.length / 2).fill(E.SECOND))];
  }

  // As `journey`, kept for as long as it is still true; in training anew at most every so many ms,
  // and for at most a fifth of the time
  known(name, z, fresh, {walk, jump = 0}) {
    const key = `${this.id} ${this.mode}`, kept = this.caches?.[name];
    const now = performance.now(), wait = this.mode === 'walk' ? walk : jump;
    const slow = this.news?.playing ? Math.max(wait, 5 * kept?.cost || 0) : 0;
    if (kept?.key === key && (kept.version === this.walkVersion() || now - kept.at < slow))
      return kept.states;
    const states = this.journey(z, fresh), cost = performance.now() - now;
    (this.caches ??= {})[name] = {key, version: this.walkVersion(), at: now, cost, states};
    return states;
  }

  walkVersion() { // the walk is the denoiser's, and stands still once that is learnt
    return this.mode === 'walk' && this.phase !== 'learn' ? 'learnt' : this.version;
  }

  // ── The held point ──

  hold(z) {
    this.z = z.map(v => Math.min(WIDE, Math.max(-WIDE, v)));
    this.exact = null;
    this.dirty = true;
  }

  // Where it goes: the exact path and its end, the learned walk, and one step of each
  answers() {
    if (!this.bumps) return null;
    this.exact ??= this.exactPath();
    const z = Float32Array.from(this.z), found = {exact: this.exact.at(-1)};
    if (!this.news?.done.learn && this.phase === 'learn') return found;
    const states = E.walk(this.denoiser(), z, E.WALK);
    found.path = states.map((x, k) => x.map(v => natural(v, E.WALK[k])));
    found.walk = found.path.at(-1);
    found.before = E.jump(this.denoiser(), z);
    if (this.phase !== 'learn') found.one = E.jump(this.f(), z);
    return found;
  }

  exactPath() {
    const times = E.karras(48);
    return this.bumps.path(this.z, times).map((p, k) => p.map(v => natural(v, times[k])));
  }

  // ── Hands ──

  wire() {
    this.shapesMenu();
    const on = (name, kind, act) => this.$(name).addEventListener(kind, act);
    on('learn', 'click', () => this.press('learn'));
    on('tighten', 'click', () => this.press('tighten'));
    on('single', 'click', () => this.single());
    on('again', 'click', () => this.restart());
    on('share', 'click', () => this.share());
    on('theme', 'click', () => this.setTheme(this.theme === 'dark' ? 'light' : 'dark'));
    on('stage', 'input', e => this.change({stage: Number(e.target.value)}));
    on('auto', 'change', e => this.change({stage: e.target.checked ? null : this.stageShown()}));
    on('seed', 'change', e => this.setSeed(e.target));
    on('flow', 'input', e => { this.flow = Number(e.target.value); this.pauseFlow(); });
    on('play', 'click', () => this.flows ? this.pauseFlow() : this.startFlow());
    on('modes', 'change', e => this.setMode(e.target.value, true));
    on('looks', 'change', e => { this.look = e.target.value; this.dirty = true; });
    on('speeds', 'change', e => this.setSpeed(Number(e.target.value)));
    on('pieces', 'change', e => this.switchPiece(e.target));
    on('undo', 'click', () => this.undo());
    on('clear', 'click', () => this.clear());
    for (const tab of this.root.querySelectorAll('[data-tab]'))
      tab.addEventListener('click', () => this.open(tab.dataset.tab));
    this.wireNoise();
    this.wirePen();
    this.resized = new ResizeObserver(() => { this.dirty = true; this.drawCharts(); });
    this.resized.observe(this.root);
    this.setSpeed(this.speed);
  }

  shapesMenu() {
    this.$('shapes').insertAdjacentHTML('beforeend', Object.keys(LABELS).map(name => `
      <label><input type="radio" name="${this.name}-data" value="${name}">${thumbnail(name)}
      <span>${LABELS[name]}</span></label>`).join(''));
    this.$('shapes').addEventListener('change', e => this.choose(e.target.value));
  }

  press(phase) {
    this.opened = null;
    const playing = this.news?.playing && this.phase === phase;
    if (playing) return this.trainer.tell({type: 'pause'});
    if (phase === 'learn' && this.phase !== 'learn') this.restart();
    this.endPen();
    this.trainer.tell({type: 'play', phase});
    if (phase === 'learn') this.startFlow();
  }

  single() {
    this.endPen();
    this.trainer.tell({type: 'step', phase: this.step === 'tighten' ? 'tighten' : this.phase});
  }

  setSpeed(speed) {
    this.speed = speed;
    this.trainer.tell({type: 'pace', speed});
  }

  setSeed(field) {
    const seed = Math.min(999999, Math.max(0, Math.round(Number(field.value) || 0)));
    field.value = seed;
    this.settings.seed = seed;
    this.restart();
  }

  switchPiece(box) {
    const piece = box.dataset.piece, on = box.checked;
    if (piece === 'weight') this.change({weight: on ? 'inverse_gap' : 'uniform'});
    else if (piece === 'start') this.change({start: on ? 'diffusion' : 'scratch'});
    else if (piece) this.change({[piece]: on});
  }

  open(step) {
    this.opened = step;
    this.refresh();
  }

  setMode(mode, flows) {
    this.mode = mode;
    this.$('modes').querySelector(`[value=${mode}]`).checked = true;
    this.flow = 1;
    this.flows = false;
    if (flows && this.news) this.startFlow();
    this.dirty = true;
  }

  // ── The flow of the cloud ──

  startFlow() {
    this.flows = !this.still.matches;
    this.flow = this.still.matches ? 1 : 0;
    this.dirty = true;
  }

  pauseFlow() {
    this.flows = false;
    this.dirty = true;
  }

  // While a denoiser learns the flow begins again and again; else it runs once
  advanceFlow(passed) {
    if (!this.flows) return;
    const seconds = this.mode === 'walk' ? 3 : this.mode === 'one' ? 1 : 2.4;
    this.flow += passed / 1000 / seconds;
    this.dirty = true;
    if (this.flow < 1) return;
    const again = this.news?.playing && this.mode === 'walk' && this.phase === 'learn';
    if (!again) {
      this.flow = 1;
      this.flows = false;
    } else if (this.flow > 1.5) this.flow = 0;
  }

  // ── Taking hold of a point of noise ──

  wireNoise() {
    const canvas = this.$('noise');
    const place = e => {
      const box = canvas.getBoundingClientRect();
      this.hold([((e.clientX - box.left) / box.width * 2 - 1) * WIDE,
        -((e.clientY - box.top) / box.height * 2 - 1) * WIDE]);
    };
    canvas.addEventListener('pointerdown', e => {
      canvas.setPointerCapture(e.pointerId);
      this.holding = true;
      place(e);
    });
    canvas.addEventListener('pointermove', e => { if (this.holding) place(e); });
    for (const end of ['pointerup', 'pointercancel'])
      canvas.addEventListener(end, () => { this.holding = false; this.remember(); });
    canvas.addEventListener('keydown', e => {
      const way = ARROWS[e.key], far = e.shiftKey ? 0.3 : 0.06;
      if (!way) return;
      taken(e);
      this.hold([this.z[0] + far * way[0], this.z[1] + far * way[1]]);
      this.sayHeld = true;
      this.remember();
    });
  }

  // ── Drawing: by mouse, finger, or arrow keys with Space held down ──

  wirePen() {
    const canvas = this.$('plane'), {pen} = this;
    const at = e => {
      const box = canvas.getBoundingClientRect();
      return [((e.clientX - box.left) / box.width * 2 - 1) * REACH,
        -((e.clientY - box.top) / box.height * 2 - 1) * REACH];
    };
    canvas.addEventListener('pointerdown', e => {
      if (!pen.drawing) return;
      canvas.setPointerCapture(e.pointerId);
      this.penDown(...at(e));
    });
    canvas.addEventListener('pointermove', e => {
      if (pen.down) for (const part of e.getCoalescedEvents?.() ?? [e]) this.penMove(...at(part));
    });
    for (const end of ['pointerup', 'pointercancel'])
      canvas.addEventListener(end, () => this.penUp());
    canvas.addEventListener('keydown', e => this.penKey(e));
    canvas.addEventListener('keyup', e => { if (e.key === ' ') this.penUp(); });
    canvas.addEventListener('blur', () => this.penUp());
  }

  penKey(e) {
    const way = ARROWS[e.key], {pen} = this, far = e.shiftKey ? 0.1 : 0.025;
    if (!pen.drawing || !(way || e.key === ' ' || e.key === 'Backspace')) return;
    taken(e);
    if (e.key === 'Backspace') this.undo();
    else if (way) this.penMove(pen.x + far * way[0], pen.y + far * way[1]);
    else if (!e.repeat) this.penDown(pen.x, pen.y);
  }

  penDown(x, y) {
    this.strokes.push(this.drawn.length);
    Object.assign(this.pen, {x, y, down: true, left: [x, y]});
    this.dot(x, y);
  }

  penMove(x, y) {
    const {pen} = this, inside = v => Math.min(REACH - PEN, Math.max(PEN - REACH, v));
    [pen.x, pen.y] = [inside(x), inside(y)];
    this.dirty = true;
    if (!pen.down) return;
    const [u, v] = pen.left, far = Math.hypot(pen.x - u, pen.y - v), dots = Math.floor(far / PEN);
    for (let k = 1; k <= dots; k++)
      this.dot(u + (pen.x - u) * k * PEN / far, v + (pen.y - v) * k * PEN / far);
  }

  dot(x, y) {
    this.pen.left = [x, y];
    if (this.drawn.length < 2 * MOST) this.drawn.push(x, y);
    this.dirty = true;
  }

  penUp() {
    if (!this.pen.down) return;
    this.pen.down = false;
    this.restart();
  }

  undo() {
    if (!this.strokes.length) return;
    this.drawn.length = this.strokes.pop();
    this.restart();
  }

  clear() {
    this.drawn = [];
    this.strokes = [];
    this.restart();
  }

  endPen() {
    this.pen.down = false;
    this.pen.drawing = false;
  }

  // ── Links, and what is kept over a reload ──

  link() {
    const {data, settings, z} = this;
    return encodeLink({data, settings, z, points: this.drawn});
  }

  remember() {
    const link = this.link();
    this.options.remember?.(link);
  }

  share() {
    const link = this.link(), address = this.options.address?.(link) ?? `#${link}`;
    this.remember();
    const words = 'The link is copied. It carries data, settings and seed.';
    const shown = () => this.announce(`Copy this link: ${address}`);
    if (navigator.clipboard?.writeText)
      navigator.clipboard.writeText(address).then(() => this.announce(words), shown);
    else shown();
  }

  restore() {
    let found = null, damaged = false;
    try {
      found = decodeLink(this.options.link ?? '');
    } catch {
      damaged = true;
    }
    if (found) Object.assign(this, {data: found.data, settings: found.settings, z: found.z,
      drawn: found.points ?? [], strokes: found.points ? [0] : []});
    this.showSettings();
    this.restart();
    if (damaged) this.announce('That link is damaged, so here are two moons instead.');
  }

  showSettings() {
    const {settings} = this;
    this.$('shapes').querySelector(`[value=${this.data}]`).checked = true;
    this.$('seed').value = settings.seed;
    this.$('auto').checked = settings.stage === null;
    const on = {...settings, weight: settings.weight === 'inverse_gap',
      start: settings.start === 'diffusion'};
    for (const box of this.$('pieces').querySelectorAll('[data-piece]'))
      box.checked = on[box.dataset.piece];
    this.$('pieces').open = [...Object.values(on)].includes(false);
  }

  // ── Light and dark ──

  adoptTheme() {
    const dark = matchMedia('(prefers-color-scheme: dark)'), body = document.body;
    const host = () => {
      const jupyter = body.dataset.jpThemeLight;
      return (jupyter ? jupyter === 'false' : dark.matches) ? 'dark' : 'light';
    };
    this.themeWatch = new MutationObserver(() => this.setTheme(host()));
    this.themeWatch.observe(body, {attributes: true, attributeFilter: ['data-jp-theme-light']});
    dark.addEventListener?.('change', () => this.setTheme(host()));
    this.setTheme(host());
  }

  setTheme(theme) {
    this.theme = theme;
    this.colors = THEMES[theme];
    this.palette = new Palette(this.colors.bright);
    for (const [name, value] of Object.entries(this.colors))
      this.root.style.setProperty(`--${name}`, value);
    this.root.dataset.theme = theme;
    this.root.style.colorScheme = theme;
    this.$('theme').setAttribute('aria-pressed', theme === 'dark');
    this.options.themed?.(this.colors);
    this.drawCharts();
    this.dirty = true;
  }

  // ── Words and states of the controls ──

  stageShown() { return this.news?.stage ?? 0; }

  refresh() {
    const {news} = this, step = this.step, drawn = this.data === 'drawn';
    if (drawn && !news?.done.learn && !news?.playing) this.pen.drawing = true;
    if (!drawn) this.endPen();
    const order = ['draw', 'learn', 'tighten'], open = this.opened ?? step;
    for (const item of this.root.querySelectorAll('.step')) {
      const name = item.dataset.step, at = order.indexOf(name);
      item.classList.toggle('current', name === step);
      item.classList.toggle('open', name === open);
      item.classList.toggle('done', at < order.indexOf(step) || (at === 2 && this.tightened()));
    }
    this.$('penTools').hidden = !drawn;
    this.$('undo').disabled = this.$('clear').disabled = !this.drawn.length;
    this.refreshButtons();
    this.refreshPlane();
    this.say();
    this.dirty = true;
  }

  tightened() { return this.phase === 'tighten' && this.news?.finished; }

  refreshButtons() {
    const {news} = this, {learn, tighten, single, again} = this.parts;
    const at = phase => this.phase === phase && news?.playing;
    const learnt = this.phase !== 'learn' || news?.finished;
    const begun = news?.done.learn > 0;
    learn.textContent = at('learn') ? 'Pause' : this.phase !== 'learn' ? 'Learn anew'
      : begun ? 'Go on' : 'Learn';
    tighten.textContent = at('tighten') ? 'Pause' : this.tightened() ? 'Tighten anew'
      : news?.done.tighten ? 'Go on' : 'Tighten';
    learn.disabled = !this.bumps;
    tighten.disabled = !this.bumps || !(learnt || begun || this.settings.start === 'scratch');
    single.disabled = !this.bumps;
    again.disabled = !begun && this.phase === 'learn';
    this.$('stage').disabled = this.phase === 'learn' && tighten.disabled;
  }

  refreshPlane() {
    const {plane} = this.parts, {drawing} = this.pen;
    plane.classList.toggle('pen', drawing);
    plane.setAttribute('role', drawing ? 'application' : 'img');
    plane.setAttribute('aria-label', drawing
      ? 'Draw here: arrow keys move the pen, Space held down draws, Backspace undoes'
      : this.planeWords());
  }

  planeWords() {
    const data = LABELS[this.data].toLowerCase();
    return `Data plane with ${data}, and noise on its way there by ${MODES[this.mode]}`;
  }

  announce(words) {
    this.announced = performance.now();
    this.$('says').textContent = words;
  }

  say() {
    if (performance.now() - (this.announced ?? -9999) < 4000) return;
    const found = WORDS[this.situation()];
    const words = typeof found === 'string' ? found : found(this);
    if (this.$('says').innerHTML !== words) this.$('says').innerHTML = words;
  }

  situation() {
    const {news} = this;
    if (!this.bumps) return 'draw';
    if (!news?.done.learn && this.phase === 'learn' && !news?.playing)
      return this.data === 'drawn' ? 'drawn' : 'begin';
    if (this.phase === 'learn')
      return news.playing ? 'learning' : news.finished ? 'learnt' : 'paused';
    if (this.takenAway()) return 'taken';
    return news.playing ? 'tightening' : news.finished ? 'tightened' : 'held';
  }

  takenAway() {
    const {sameNoise, held, boundary, weight} = this.settings;
    return !(sameNoise && held && boundary) || weight !== 'inverse_gap';
  }

  // ── One frame ──

  tick(now) {
    const passed = Math.min(100, now - (this.shownAt ?? now));
    if (this.shownAt) this.frames.push(now - this.shownAt);
    if (this.frames.length > 600) this.frames.shift();
    this.shownAt = now;
    this.advanceFlow(passed);
    if (this.dirty) {
      this.dirty = false;
      this.draw();
    }
    this.frame = requestAnimationFrame(later => this.tick(later));
  }

  draw() {
    this.readouts();
    const answers = this.pen.drawing && !this.news?.done.learn ? null : this.answers();
    drawPlane(this, answers);
    drawNoise(this);
    this.listMarks(answers);
  }

  readouts() {
    const {news} = this, {stage, flow} = this.parts, near = this.stageShown();
    if (document.activeElement !== stage || this.settings.stage === null) stage.value = near;
    const q = E.nearness(near), words = near ? `r = ${q.toFixed(q > 0.9 ? 3 : 2)} t` : 'r = 0';
    this.$('ratio').textContent = words;
    stage.setAttribute('aria-valuetext', words);
    this.$('auto').checked = this.settings.stage === null;
    flow.value = Math.min(1, this.flow);
    this.$('play').textContent = this.flows ? '❚❚' : '▶';
    this.$('level').textContent = flowWords(this);
    this.$('learnt').value = this.phase === 'learn' ? news?.share ?? 0 : 1;
    this.$('count').textContent = news
      ? `${(news.done.learn + news.done.tighten).toLocaleString('en')} steps` : '';
  }

  listMarks(answers) {
    if (!answers) {
      this.marks = null;
      return this.$('marks').replaceChildren();
    }
    const {exact} = answers, away = p => short(Math.hypot(p[0] - exact[0], p[1] - exact[1]));
    const rows = [['exact', `(${signed(exact[0])}, ${signed(exact[1])})`]];
    for (const name of ['walk', 'before', 'one'])
      if (answers[name]) rows.push([name, `${away(answers[name])} off`]);
    const {colors} = this;
    const marks = rows.map(([name, value]) => `<li>${glyph(name, colors)}
      <span>${MARKS[name].label}</span><span>${value}</span></li>`).join('');
    if (marks !== this.marks) this.$('marks').innerHTML = this.marks = marks;
    if (this.sayHeld) {
      this.sayHeld = false;
      this.announce(rows.map(([name, value]) => `${MARKS[name].label}: ${value}`).join('; '));
    }
  }

  drawCharts() {
    if (!this.history) return;
    distanceChart(this);
    residualChart(this);
    lossChart(this);
  }

  // A picture can be long away; when it comes back nothing has been lost
  destroy() {
    cancelAnimationFrame(this.frame);
    this.trainer.stop();
    this.resized.disconnect();
    this.themeWatch.disconnect();
    this.root.remove();
  }
}

// A curve that stays short: when it has many points, every second goes
class Record {
  constructor(most = 240) { Object.assign(this, {most, items: [], every: 1, waits: 0}); }

  push(x, y) {
    const last = this.items.at(-1);
    if (this.waits++ % this.every && last) this.items[this.items.length - 1] = [x, y];
    else this.items.push([x, y]);
    if (this.items.length > this.most) {
      this.items = this.items.filter((_, i) => i % 2 === 0);
      this.every *= 2;
    }
  }
}

const ARROWS = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1]};

function taken(event) {
  event.preventDefault();
  event.stopPropagation();
}

const WORDS = {
  draw: 'Draw something on the big plane: a letter, a face, your initials.',
  drawn: 'Go on drawing, or press <b>Learn</b>.',
  begin: 'Grey are the data, coloured is noise, and the line is the path that one point of it '
    + 'must take. Press <b>Learn</b>, or draw data of your own.',
  learning: 'The network learns to denoise. Step by step, the noise already finds its way to the '
    + 'data.',
  paused: 'Paused. Have a look at <b>One step</b>: where does it send the noise?',
  learnt: 'The walk arrives, but it takes 35 evaluations. <b>One step</b> only finds the middle of '
    + 'all it could be. Press <b>Tighten</b>.',
  tightening: 'Now <i>r</i> comes up to <i>t</i>, and the one step opens up: each colour finds its '
    + 'own place. Pull the slider yourself, if you like.',
  held: 'Paused. Drag the point through the noise: where do its neighbours land?',
  tightened: ({measures: m}) => (m?.phase === 'tighten'
    ? `One step now lands ${short(m.one.mean)} from the data; the walk of 35 evaluations, `
      + `${short(m.walk.mean)}; one step of the denoiser, ${short(m.denoiser.mean)}. ` : '')
    + 'Drag the point, or take something away below and tighten anew.',
  taken: 'Something is taken away. What does it do to the one step, and to the distance?',
};

// ── The two planes ────────────────────────────────────────────────────────────────────────────

// A context whose unit is one pixel of the page
function fit(canvas) {
  const sharp = Math.min(2, devicePixelRatio || 1), width = canvas.clientWidth;
  const dots = Math.max(1, Math.round(width * sharp));
  if (canvas.width !== dots) canvas.width = canvas.height = dots;
  const g = canvas.getContext('2d');
  g.setTransform(dots / Math.max(1, width), 0, 0, dots / Math.max(1, width), 0, 0);
  g.clearRect(0, 0, width, width);
  return [g, width];
}

const across = (v, width) => (v / REACH + 1) / 2 * width;
const down = (v, width) => (1 - v / REACH) / 2 * width;
const onNoise = (v, width) => (v / WIDE + 1) / 2 * width;

function drawPlane(lab, answers) {
  const [g, width] = fit(lab.$('plane'));
  drawData(g, width, lab);
  const blank = lab.pen.drawing && !lab.news?.done.learn && !lab.news?.playing;
  if (blank) return drawPen(g, width, lab);
  if (lab.look === 'grid') drawGrid(g, width, lab);
  else drawCloud(g, width, lab);
  if (answers) drawHeld(g, width, lab, answers);
}

function drawData(g, width, lab) {
  const points = lab.points(), std = lab.data === 'drawn' ? PEN : PRESETS[lab.data].std;
  const radius = Math.max(2.5, 1.4 * std / REACH * width / 2);
  g.fillStyle = lab.colors.data;
  g.beginPath();
  for (let i = 0; i < points.length; i += 2) {
    const x = across(points[i], width), y = down(points[i + 1], width);
    g.moveTo(x + radius, y);
    g.arc(x, y, radius, 0, 7);
  }
  g.fill();
}

function drawPen(g, width, lab) {
  const {pen, colors} = lab, x = across(pen.x, width), y = down(pen.y, width);
  if (!lab.drawn.length) {
    g.fillStyle = colors.soft;
    g.font = '500 18px system-ui, sans-serif';
    g.textAlign = 'center';
    g.fillText('Draw here', width / 2, width / 2 - 24);
  }
  g.strokeStyle = colors.one;
  g.lineWidth = pen.down ? 3 : 1.5;
  g.beginPath();
  g.arc(x, y, 7, 0, 7);
  g.stroke();
}

// Where the states of a journey stand at the share `flow` of the way
function between(states, flow, evenly) {
  const last = states.length - 1, place = Math.min(1, Math.max(0, flow)) * last;
  const k = Math.min(Math.max(0, last - 1), Math.floor(place)), raw = place - k;
  const share = evenly ? raw : raw * raw * (3 - 2 * raw);
  const a = states[k], b = states[Math.min(last, k + 1)];
  return i => a[i] + (b[i] - a[i]) * share;
}

function drawCloud(g, width, lab) {
  const states = lab.known('cloud', lab.noise, lab.fresh, {walk: 250}), end = states.at(-1);
  const at = between(states, lab.flow, lab.mode === 'walk'), {palette} = lab;
  const known = states.length > 1, size = Math.max(3.4, width / 125);
  g.globalAlpha = 0.85;
  for (let i = 0; i < CLOUD; i++) {
    const place = known ? palette.index(end[2 * i], end[2 * i + 1])
      : palette.index(lab.noise[2 * i] / 2, lab.noise[2 * i + 1] / 2);
    g.fillStyle = palette.css[place];
    g.beginPath();
    g.arc(across(at(2 * i), width), down(at(2 * i + 1), width), size / 2, 0, 7);
    g.fill();
  }
  g.globalAlpha = 1;
}

// Lines of equal noise, and where the map sends them
const LINES = (() => {
  const steps = Array.from({length: 81}, (_, i) => (i - 40) / 16), lines = [];
  for (let k = -6; k <= 6; k++) {
    lines.push(steps.map(v => [k * 0.4, v]), steps.map(v => [v, k * 0.4]));
  }
  return lines.map(line => line.filter(([x, y]) => Math.hypot(x, y) <= WIDE));
})();
const LINE_POINTS = Float32Array.from(LINES.flat(2));
const LINE_FRESH = new Float32Array(LINE_POINTS.length);

function drawGrid(g, width, lab) {
  const states = lab.known('grid', LINE_POINTS, LINE_FRESH, {walk: 500}), end = states.at(-1);
  const at = between(states, lab.flow, lab.mode === 'walk'), {palette} = lab;
  g.lineWidth = 1.6;
  let from = 0;
  for (const line of LINES) {
    for (let i = from; i + 1 < from + line.length; i++) {
      g.strokeStyle = palette.css[palette.index(end[2 * i], end[2 * i + 1])];
      g.beginPath();
      g.moveTo(across(at(2 * i), width), down(at(2 * i + 1), width));
      g.lineTo(across(at(2 * i + 2), width), down(at(2 * i + 3), width));
      g.stroke();
    }
    from += line.length;
  }
}

// The marks: one shape and one colour for each answer
const MARKS = {
  exact: {label: 'exact answer', color: 'ink',
    path: 'M0-6.5A6.5 6.5 0 1 1 0 6.5A6.5 6.5 0 1 1 0-6.5Z'},
  walk: {label: 'walk', color: 'ink', hollow: true,
    path: 'M0-7A7 7 0 1 1 0 7A7 7 0 1 1 0-7Z'},
  before: {label: 'denoiser', color: 'before', path: 'M0-8.5L8.5 0L0 8.5L-8.5 0Z'},
  one: {label: 'one step', color: 'one', path: 'M-6.5-6.5H6.5V6.5H-6.5Z'},
};

function glyph(name, colors) {
  const {path, color, hollow} = MARKS[name], paint = colors[color];
  const look = hollow ? `fill="none" stroke="${paint}" stroke-width="2.5"` : `fill="${paint}"`;
  return `<svg viewBox="-10 -10 20 20" aria-hidden="true"><path d="${path}" ${look}/></svg>`;
}

function mark(g, width, lab, name, [x, y]) {
  const {path, color, hollow} = MARKS[name], shape = new Path2D(path), {colors} = lab;
  g.save();
  g.translate(across(x, width), down(y, width));
  g.lineWidth = hollow ? 6 : 3.5;
  g.strokeStyle = colors.paper;
  g.stroke(shape);
  if (hollow) {
    g.lineWidth = 2.5;
    g.strokeStyle = colors[color];
    g.stroke(shape);
  } else {
    g.fillStyle = colors[color];
    g.fill(shape);
  }
  g.restore();
}

function polyline(g, width, points, color, thick, dash = []) {
  g.strokeStyle = color;
  g.lineWidth = thick;
  g.lineJoin = 'round';
  g.setLineDash(dash);
  g.beginPath();
  for (const [x, y] of points) g.lineTo(across(x, width), down(y, width));
  g.stroke();
  g.setLineDash([]);
}

function drawHeld(g, width, lab, answers) {
  const {colors, exact} = lab, start = exact[0];
  polyline(g, width, exact, colors.paper, 6);
  polyline(g, width, exact, colors.ink, 2.2);
  if (answers.path) polyline(g, width, answers.path, colors.ink, 1.5, [2, 4]);
  const jump = answers.one ?? answers.before, color = answers.one ? colors.one : colors.before;
  if (jump) polyline(g, width, [start, jump], color, 2, [7, 5]);
  g.fillStyle = colors.ink;
  g.beginPath();
  g.arc(across(start[0], width), down(start[1], width), 4, 0, 7);
  g.fill();
  for (const name of ['before', 'walk', 'exact', 'one'])
    if (answers[name]) mark(g, width, lab, name, answers[name]);
}

// The noise plane, each place in the colour of where it ends
const FIELD_POINTS = Float32Array.from({length: 2 * FIELD * FIELD}, (_, i) => {
  const k = i >> 1, cell = i % 2 ? FIELD - 1 - Math.floor(k / FIELD) : k % FIELD;
  return ((cell + 0.5) / FIELD * 2 - 1) * WIDE;
});
const FIELD_FRESH = new Float32Array(FIELD_POINTS.length);

function drawNoise(lab) {
  const [g, width] = fit(lab.$('noise')), {colors} = lab;
  const ends = lab.known('field', FIELD_POINTS, FIELD_FRESH, {walk: 700, jump: 120});
  g.imageSmoothingEnabled = true;
  g.drawImage(fieldPicture(lab, ends), 0, 0, width, width);
  const x = onNoise(lab.z[0], width), y = onNoise(-lab.z[1], width);
  g.fillStyle = colors.ink;
  g.strokeStyle = colors.paper;
  g.lineWidth = 3;
  g.beginPath();
  g.arc(x, y, 8, 0, 7);
  g.fill();
  g.stroke();
}

function fieldPicture(lab, states) {
  const canvas = lab.fieldCanvas ??= new OffscreenCanvas(FIELD, FIELD), {palette} = lab;
  if (lab.fieldOf?.states === states && lab.fieldOf.palette === palette) return canvas;
  lab.fieldOf = {states, palette};
  const g = canvas.getContext('2d'), picture = g.createImageData(FIELD, FIELD);
  const ends = states.length > 1 ? states.at(-1) : FIELD_POINTS.map(v => v / 2);
  for (let k = 0; k < FIELD * FIELD; k++) {
    const far = Math.hypot(FIELD_POINTS[2 * k], FIELD_POINTS[2 * k + 1]) / WIDE;
    const color = palette.rgb[palette.index(ends[2 * k], ends[2 * k + 1])];
    picture.data.set(color, 4 * k);
    picture.data[4 * k + 3] = 255 * Math.max(0, Math.min(1, 1.15 * (1 - far ** 3)));
  }
  g.putImageData(picture, 0, 0);
  return canvas;
}

function flowWords(lab) {
  const share = Math.min(1, lab.flow);
  if (lab.mode !== 'walk') return share < 1 ? 'jumping' : 'arrived';
  const t = E.WALK[Math.min(E.WALK.length - 1, Math.floor(share * (E.WALK.length - 1)))];
  return `t = ${t >= 10 ? t.toFixed(0) : t >= 1 ? t.toFixed(1) : t.toFixed(t ? 2 : 0)}`;
}

function thumbnail(name) {
  if (name === 'drawn') return `<svg viewBox="-1.25 -1.25 2.5 2.5" aria-hidden="true"><path
    d="M-.75.8L-.62.3.5-.82.85-.47-.27.65Z" /></svg>`;
  const {std, points} = PRESETS[name], list = points(), radius = Math.max(0.055, 1.6 * std);
  const dots = [], skip = list.length > 100 && name !== 'checkerboard' ? 8 : 2;
  for (let i = 0; i < list.length; i += skip) {
    const [x, y] = [list[i], -list[i + 1]].map(v => v.toFixed(2));
    dots.push(`<circle cx="${x}" cy="${y}" r="${radius}"/>`);
  }
  return `<svg viewBox="-1.1 -1.1 2.2 2.2" aria-hidden="true">${dots.join('')}</svg>`;
}

// ── Charts ────────────────────────────────────────────────────────────────────────────────────

// The frame of a chart: an empty picture as wide as its place, and its two scales
function chart(svg, height, {x: [x0, x1], y: [y0, y1], log = false}, right = 12) {
  const width = svg.clientWidth || 280, left = 34, top = 8, bottom = height - 20;
  svg.setAttribute('viewBox', `0 0 ${width} ${height}`);
  svg.style.height = `${height}px`;
  const scale = log ? Math.log : v => v;
  const X = v => left + (v - x0) / (x1 - x0 || 1) * (width - left - right);
  const Y = v => bottom - (scale(Math.min(y1, Math.max(y0, v))) - scale(y0))
    / (scale(y1) - scale(y0)) * (bottom - top);
  return {X, Y, width, height, left, right: width - right, top, bottom};
}

const corners = points => points.map(p => p.map(v => v.toFixed(1)).join()).join(' ');

const line = (points, color, more = '') => `<polyline fill="none" stroke="${color}"
  stroke-width="2" stroke-linejoin="round" points="${corners(points)}" ${more}/>`;

const plain = v => String(v).replace(/^0/, '');
const thousands = v => v >= 1000 ? `${+(v / 1000).toFixed(1)}k` : `${v}`;

function axes(c, ys, xs, colors, name = String) {
  const rows = ys.map(v => `<line x1="${c.left}" x2="${c.right}" y1="${c.Y(v)}" y2="${c.Y(v)}"
    stroke="${colors.line}"/>
    <text x="${c.left - 6}" y="${c.Y(v) + 4}" text-anchor="end">${name(v)}</text>`);
  const columns = xs.map(v => `<text x="${c.X(v)}" y="${c.height - 4}"
    text-anchor="middle">${thousands(v)}</text>`);
  return rows.join('') + columns.join('');
}

const SERIES = [
  ['walk', 'walk', 'ink', '4 3'], ['before', 'one step', 'before', ''],
  ['one', 'one step', 'one', ''], ['two', 'two steps', 'two', '8 3'],
];

// Labels at the ends of the lines, pushed apart until they can be read
function apart(labels, gap, top, bottom) {
  labels.sort((a, b) => a.y - b.y);
  for (let k = 1; k < labels.length; k++)
    labels[k].y = Math.max(labels[k].y, labels[k - 1].y + gap);
  const over = labels.length ? labels.at(-1).y - bottom : 0;
  if (over > 0) for (let k = labels.length - 1, y = bottom; k >= 0; k--, y -= gap)
    labels[k].y = Math.min(labels[k].y, y);
  return labels;
}

function distanceChart(lab) {
  const {history, measures, colors, total} = lab, svg = lab.$('distances');
  const c = chart(svg, 210, {x: [0, total], y: [0.01, 1], log: true}, 104);
  const parts = [axes(c, [0.01, 0.03, 0.1, 0.3, 1], [0, total], colors, short)], labels = [];
  if (measures) {
    const {low, high, mean} = measures.floor;
    parts.push(`<rect x="${c.left}" width="${c.right - c.left}" y="${c.Y(high)}"
      height="${c.Y(low) - c.Y(high)}" fill="${colors.data}" opacity=".6"/>`);
    labels.push({y: c.Y(mean), color: colors.soft, text: `fresh data ${short(mean)}`});
  }
  for (const [name, label, color, dash] of SERIES) {
    const items = history[name].items;
    if (!items.length) continue;
    parts.push(band(items, c, colors[color]));
    const means = items.map(([at, d]) => [c.X(at), c.Y(d.mean)]);
    parts.push(line(means.length > 1 ? means : [means[0], [means[0][0] + 2, means[0][1]]],
      colors[color], dash && `stroke-dasharray="${dash}"`));
    const over = name === 'before' && history.one.items.length;
    if (!over) labels.push({y: means.at(-1)[1], color: colors[color],
      text: `${label} ${short(items.at(-1)[1].mean)}`});
  }
  for (const {y, color, text} of apart(labels, 15, c.top, c.bottom))
    parts.push(`<text x="${c.right + 6}" y="${y + 4}" style="fill:${color}">${text}</text>`);
  svg.innerHTML = parts.join('');
  svg.setAttribute('aria-label', labels.length
    ? `Sliced W2 distance to the data: ${labels.map(l => l.text).join(', ')}`
    : 'Distance to the data: nothing measured yet');
}

function band(items, c, color) {
  const edge = side => items.map(([at, d]) => [c.X(at), c.Y(d[side])]);
  const around = [...edge('high'), ...edge('low').reverse()];
  return `<polygon points="${corners(around)}" fill="${color}" opacity=".16"/>`;
}

// The residual of all pairs r < t, dark where the two answers disagree, and the pairs now asked
function residualChart(lab) {
  const svg = lab.$('residuals'), {colors, measures} = lab, n = E.LEVELS.length;
  const width = svg.clientWidth || 280, height = 196, left = 34;
  const size = Math.min(width - left - 60, height - 26), cell = size / (n - 1);
  const X = k => left + k * cell, Y = k => size - k * cell + 4;
  svg.setAttribute('viewBox', `0 0 ${width} ${height}`);
  svg.style.height = `${height}px`;
  const cells = [];
  for (let i = 1; i < n; i++) for (let j = 0; j < i; j++) {
    const value = measures?.residuals[i][j];
    cells.push(`<rect x="${X(j)}" y="${Y(i)}" width="${cell + 0.4}" height="${cell + 0.4}"
      fill="${value === undefined ? colors.faint : shade(value, lab.theme)}"/>`);
  }
  const q = E.nearness(lab.stageShown());
  const asked = E.LEVELS.slice(1).map(t => [X(levelPlace(q * t)), Y(levelPlace(t)) + cell]);
  svg.innerHTML = cells.join('') + line(asked, '#E69F00', 'style="stroke-width:3"')
    + residualWords({left, size, cell, n});
  const values = measures?.residuals.flat().filter(v => v >= 0) ?? [];
  svg.setAttribute('aria-label', 'Map of the residual over t and r, ' + (values.length
    ? `largest ${short(Math.max(...values))}; asked now: r = ${q.toFixed(2)} t`
    : 'nothing measured yet'));
}

function residualWords({left, size, cell, n}) {
  const low = size + 20, beside = left + (n - 1) * cell - 30;
  const up = (y, words) => `<text x="${left - 6}" y="${y}" text-anchor="end">${words}</text>`;
  return up(size + 4, '.02') + up(size / 2 + 8, 't') + up(16, '80')
    + `<text x="${left}" y="${low}">0</text>
      <text x="${left + size / 2}" y="${low}" text-anchor="middle">r</text>
      <text x="${left + size}" y="${low}" text-anchor="end">80</text>
      <text x="${beside}" y="${size - 24}">
        <tspan style="fill:#E69F00;font-weight:700">╱ </tspan>pairs asked</text>
      <text x="${beside}" y="${size - 8}">now</text>`;
}

// Where a level stands among LEVELS, between them too
function levelPlace(level) {
  const [low, high] = [E.LEVELS[1], E.LEVELS.at(-1)];
  if (level < low) return level / low;
  return 1 + Math.log(level / low) / Math.log(high / low) * (E.LEVELS.length - 2);
}

function shade(value, theme) {
  const share = Math.min(1, value / 0.4) ** 0.8;
  const light = theme === 'dark' ? 0.24 + 0.6 * share : 0.97 - 0.6 * share;
  return `rgb(${oklch(light, 0.015 + 0.11 * share, 4.35 + 0.6 * (theme === 'dark' ? 0 : share))})`;
}

function lossChart(lab) {
  const svg = lab.$('loss'), {colors, total} = lab;
  const items = lab.history.loss.items.filter(([, loss]) => loss > 0);
  const values = items.map(([, loss]) => loss), last = values.at(-1);
  const low = Math.min(1e-3, ...values), high = Math.max(1, ...values);
  const c = chart(svg, 96, {x: [0, total], y: [low, high], log: true}, 104);
  const rows = [high, low].map(v => Number(v.toPrecision(1)));
  const parts = [axes(c, rows, [0, total], colors, plain)];
  if (values.length > 1)
    parts.push(line(items.map(([x, v]) => [c.X(x), c.Y(v)]), colors.soft));
  if (last) parts.push(`<text x="${c.right + 6}" y="${Math.min(c.bottom, c.Y(last)) + 4}">
    ${plain(Number(last.toPrecision(2)))}</text>`);
  svg.innerHTML = parts.join('');
  svg.setAttribute('aria-label', last ? `Loss, now ${last.toPrecision(2)}` : 'Loss: nothing yet');
}

// ── Into a page ───────────────────────────────────────────────────────────────────────────────

// Put the Lab into `element`. Options: `link`, what to begin with; `remember(link)`, told at every
// change; `address(link)`, what is copied; `themed(colors)`; `level` of its heading; `plans`, other
// lengths of training.
export function mount(element, options = {}) {
  return new Lab(element, options);
}

// A page of its own: the link stands in the address, and outlives a reload
export function mountPage(element) {
  const style = document.documentElement.style;
  return mount(element, {
    level: 1,
    link: location.hash,
    remember: link => history.replaceState(null, '', `#${link}`),
    address: link => `${location.href.replace(/#.*/, '')}#${link}`,
    themed: colors => { style.background = colors.paper; },
  });
}

// What anywidget asks for: `link` is synced with Python
export default {
  render({model, el}) {
    const lab = mount(el, {
      link: model.get('link'),
      remember: link => { model.set('link', link); model.save_changes(); },
    });
    return () => lab.destroy();
  },
};
