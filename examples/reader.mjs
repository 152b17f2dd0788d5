// Reads an adapter of shared factors, as docs/format.md says: what is added to each module's weight. No dependencies.
//
//   node examples/reader.mjs FOLDER [NAME OF AN ADAPTER IN A LIBRARY]
//
// A matrix is an array of rows. The same functions run in a browser: `read` takes the files' contents.

const same = (x) => x;
const TYPES = {
  F64: [8, 'getFloat64', same], F32: [4, 'getFloat32', same], U8: [1, 'getUint8', same], I8: [1, 'getInt8', same],
  F16: [2, 'getUint16', (bits) => half(bits)], BF16: [2, 'getUint16', (bits) => fromBits(bits << 16)],
};
const sum = (matrices) => matrices.reduce((one, other) => one.map((row, i) => row.map((x, j) => x + other[i][j])));
const transposed = (a) => a[0].map((_, j) => a.map((row) => row[j]));
const times = (a, b) => a.map((row) => b[0].map((_, j) => row.reduce((total, x, k) => total + x * b[k][j], 0)));
const scaled = (a, factor) => a.map((row, i) => row.map((x, j) => x * factor(i, j)));
const cut = (a, from, to) => a.map((row) => row.slice(from, to));
const range = (n) => Array.from({ length: n }, (_, i) => i);
const beside = (parts) => parts[0].map((_, i) => parts.flatMap((part) => part[i]));
const table = (numbers, columns) => range(numbers.length / columns).map((i) => [...numbers.slice(i * columns, (i + 1) * columns)]);

// The roles of each transform beside `gain_rank` and `gain_out`, and its options: all others are refused.
const KNOWN = {
  Identity: ['A B', ''],
  SS: ['A B', 'slice'],
  KE: ['A B K_A K_B', 'size kernel shared_rank rowwise'],
  GT: ['A B G_id G_iu G_od G_ou', 'size gates gate_rank'],
  Basis: ['A B c_A c_B', 'count'],
  Mix: ['A B m_A m_B', 'count_A count_B'],
  Loadings: ['A B L_A L_B', 'vectors'],
  Core: ['A B core core_2 core_3 c', 'cores count'],
  BlockDiagonal: ['A B', 'blocks cut'],
  Grid: ['A B', 'blocks'],
  Hadamard: ['A B A_2 B_2', ''],
  MiSS: ['B', ''],
  Rotation: ['A B', 'chunks_A chunks_B stride'],
  Shards: ['A B I_A I_B', 'rows shards'],
  VectorBank: ['bank L_A L_B', 'vectors length top_k bank_bound logits_deviation'],
  Experts: ['A B G', 'count'],
  magnitude: ['mu', 'plain'],
};
const FEATURES = ['drawn', 'experts', 'full', 'int4', 'int8', 'library', 'tied'];
const WORDS = { slice: ['leading', 'centre', 'trailing'], cut: ['both', 'in', 'out'], plain: [true, false] };

function unknown(what) {
  throw new Error(`this reader does not know: ${what}`);
}

/** Returns the update by the path of a module, or, where a router makes it depend on x, a function of x; and what is
 * trained in full, by its parameter.
 * @param config the text of adapter_config.json
 * @param files the bytes of adapter_model.safetensors and, of a library, of an adapter's own file
 * @param weights W (d_out rows) of the base by the path of a module, which magnitudes scale
 */
export async function read(config, files, weights = {}) {
  const { peft_type: type, bishare, modules_to_save: beside } = JSON.parse(config);
  const { sharing } = bishare, fields = 'format full modules needs tensors terms';
  if (type !== 'BISHARE' || sharing.format !== 3 || Object.keys(sharing).sort().join(' ') !== fields) unknown('this format');
  if (beside) unknown('modules that PEFT saved beside it');
  for (const word of sharing.needs) if (!KNOWN[word] && !FEATURES.includes(word)) unknown(word);
  const words = (list) => [...new Set(list)].filter((word) => word !== 'library').sort().join(' ');
  if (words(sharing.needs) !== words(used(sharing))) unknown('other `needs`');
  sharing.terms.forEach(check);
  const stored = Object.assign({}, ...files.map(parse)), kinds = [], tensors = [];
  const left = new Set(Object.keys(stored).filter((key) => !/\.seed_-?\d+$/.test(key)));
  for (const entry of sharing.tensors) {
    const here = await values(entry, stored, left);
    here.forEach((tensor) => (tensors.push(tensor), kinds.push(entry)));
  }
  if (left.size) unknown(`the tensor ${[...left][0]}, which \`sharing\` does not name`);
  const modules = sharing.modules.flatMap((entry) => expanded(entry, 'module'));
  const whole = sharing.full.flatMap((entry) => expanded(entry, 'parameter'));
  const paths = [...modules.map(({ module }) => module), ...whole.map(({ parameter }) => parameter)];
  if (new Set(paths).size !== paths.length) unknown('a module or a parameter twice');
  const named = new Set(), updates = {}, full = {};
  const at = (index, list) => (Number.isInteger(index) && list[index] !== undefined ? list[index] : unknown(`the index ${index}`));
  for (const entry of modules) {
    const { module, shape, terms, expert, rank } = entry, fields = ['module', 'shape', 'rank', 'tied', 'expert', 'terms'];
    if (!Object.keys(entry).every((name) => fields.includes(name))) unknown(`these fields of ${module}`);
    const here = terms.map(([index, ...places]) => {
      const term = at(index, sharing.terms);
      if (places.length !== term.roles.length) unknown(`the tensors of ${module}`);
      for (const [i, role] of term.roles.entries()) {
        named.add(places[i]);
        const selects = ['VectorBank', 'Shards'].includes(term.transform) && /^[LI]_[AB]$/.test(role);
        if (selects && at(places[i], kinds).scales) unknown(`a quantised ${role}`);
      }
      return [term, Object.fromEntries(term.roles.map((role, i) => [role, at(places[i], tensors)]))];
    });
    const names = here.map(([term]) => term.transform), routed = names.includes('Experts');
    if (names.slice(0, -1).includes('magnitude')) unknown(`such a magnitude at ${module}`);
    if ((rank === undefined) !== (routed || names.includes('magnitude'))) unknown(`the rank of ${module}`);
    const index = module.match(/experts\.(\d+)\./);
    if (expert !== (index ? Number(index[1]) : undefined)) unknown(`the expert of ${module}`);
    const update = (x) => change(here, { module, shape, expert, rank, weight: weights[module] }, x);
    if (routed && here.at(-1)[0].options.plain === false) unknown('lengths of rows that depend on the input');
    updates[module] = routed ? update : update();
  }
  for (const { parameter, tensor, shape } of whole) {
    full[parameter] = [at(tensor, tensors).flat()];
    if (full[parameter][0].length !== shape.reduce((one, other) => one * other)) unknown(`the shape of ${parameter}`);
    named.add(tensor);
  }
  if (named.size !== tensors.length) unknown('a tensor that nothing uses');
  return { sharing, updates, full };
}

/** Returns the words of what is in a folder. */
function used({ tensors, modules, full, terms }) {
  const words = { draw: 'drawn', expert: 'experts', base: 'base', int8: 'int8', int4: 'int4', tied: 'tied' };
  const found = Object.keys(words).filter((key) => [...tensors, ...modules, ...full].some((entry) => key in entry));
  return [...terms.map(({ transform }) => transform), ...found.map((key) => words[key]), ...(full.length ? ['full'] : [])];
}

/** Returns the modules or parameters of an entry, one for each block. */
function expanded({ blocks, ...entry }, name) {
  const [first, count] = blocks ?? [0, 1], path = entry[name];
  if (Boolean(blocks) !== path.includes('{}') || !(count > 0)) unknown(`the blocks of ${path}`);
  const at = (ref, k) => (Array.isArray(ref) ? ref[0] + k * ref[1] : ref);
  return range(count).map((k) => {
    const here = { ...entry, [name]: path.replace('{}', first + k) };
    if (name === 'parameter') return { ...here, tensor: at(entry.tensor, k) };
    return { ...here, terms: entry.terms.map(([term, ...refs]) => [term, ...refs.map((ref) => at(ref, k))]) };
  });
}

/** Returns the values of the tensors of an entry, wherever they are; its keys are taken from `left`. */
async function values(entry, stored, left) {
  if (entry.base) unknown("a start from the base's weights");
  const fields = entry.draw ? 'draw dtype sha256 shape text' : 'count int4 int8 key offset row scales shape';
  if (!Object.keys(entry).every((name) => fields.split(' ').includes(name))) unknown('such an entry of a tensor');
  if (entry.draw) return [await drawn(entry, entry.text)];
  const { shape, count, row = 0, key } = entry, keys = ['key', 'int8', 'int4', 'scales'].filter((name) => name in entry).map((name) => entry[name]);
  if (keys.length !== (key ? 1 : 2)) unknown('two ways to store a tensor');
  for (const name of keys) if (!stored[name] || !left.delete(name)) unknown(`the missing tensor ${name}`);
  if (!(count > 0) || row < 0 || keys.some((name) => row + count > stored[name].shape[0])) unknown('these rows');
  const part = (name, i) => {
    const { type, shape: [rows, ...rest], numbers } = stored[name], size = numbers.length / rows;
    return { is: `${type} ${rest}`, numbers: numbers.slice(i * size, (i + 1) * size) };
  };
  return range(count).map((i) => {
    if (!key) return quantised(entry, part(entry.int4 ?? entry.int8, row + i), part(entry.scales, row + i));
    const { is, numbers } = part(key, row + i);
    if (!['F64', 'F32', 'BF16', 'F16'].some((type) => is === `${type} ${shape}`)) unknown('such a stack');
    if (!numbers.every(Number.isFinite)) unknown('values that are not finite');
    return table(numbers, shape[1]);
  });
}

/** Returns whole numbers times the scale of their group of 64, plus the offset. */
function quantised({ shape: [rows, columns], int4, offset = 0 }, whole, each) {
  const count = rows * columns, bytes = whole.numbers, most = int4 ? 7 : 127, factors = each.numbers;
  const fits = int4 ? whole.is === `U8 ${Math.ceil(count / 2)}` : whole.is === `I8 ${rows},${columns}`;
  const scaling = ['BF16', 'F16', 'F32'].some((type) => each.is === `${type} ${Math.ceil(count / 64)}`) && factors.every(Number.isFinite);
  const numbers = int4 ? bytes.flatMap((byte) => [(byte & 15) - 8, (byte >> 4) - 8]) : bytes;
  if (!fits || !scaling || numbers.some((q, i) => Math.abs(q) > (i < count ? most : 0))) unknown(`such ${int4 ? 'int4' : 'int8'} numbers`);
  const value = (q, i) => Math.fround(Math.fround(q * factors[Math.floor(i / 64)]) + Math.fround(offset));
  return table(numbers.slice(0, count).map(value), columns);
}

/** Refuses a transform, a role, an option or a word that this reader does not know. */
function check({ transform, options, rank, scale, roles: used }) {
  const [roles, names] = (KNOWN[transform] ?? unknown(`the transform ${transform}`)).map((text) => text.split(' '));
  const scales = transform === 'magnitude';
  if (scales && (rank !== 1 || scale !== 1)) unknown('a rank or a scale of magnitude');
  for (const role of used) if (![...roles, ...(scales ? [] : ['gain_rank', 'gain_out'])].includes(role)) unknown(`the role ${role} of ${transform}`);
  for (const [option, value] of Object.entries(options)) {
    if (!names.includes(option) || !(WORDS[option] ?? [value]).includes(value)) unknown(`${option} = ${value} of ${transform}`);
  }
}

/** Returns the matrices of a file by key, as arrays of rows. */
export function safetensors(bytes) {
  return Object.fromEntries(Object.entries(parse(bytes)).map(([key, { shape, numbers }]) => [key, table(numbers, shape.at(-1) ?? 1)]));
}

function parse(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const first = 8 + Number(view.getBigUint64(0, true));
  const found = {};
  for (const [key, said] of Object.entries(JSON.parse(new TextDecoder().decode(bytes.subarray(8, first))))) {
    if (key === '__metadata__') continue;
    const [size, get, meant] = TYPES[said.dtype] ?? unknown(`the type ${said.dtype}`);
    const [from, to] = said.data_offsets;
    const numbers = range((to - from) / size).map((i) => meant(view[get](first + from + i * size, true)));
    found[key] = { type: said.dtype, shape: said.shape, numbers };
  }
  return found;
}

function half(bits) {
  const exponent = (bits >> 10) & 31, fraction = bits & 1023;
  const size = exponent === 0 ? fraction * 2 ** -24 : exponent === 31 ? (fraction ? NaN : Infinity) : (1 + fraction / 1024) * 2 ** (exponent - 15);
  return bits >> 15 ? -size : size;
}

const bitsOf = (x) => new Uint32Array(new Float32Array([x]).buffer)[0];
const fromBits = (bits) => new Float32Array(new Uint32Array([bits]).buffer)[0];

/** Rounds a number to a type: to the nearest, of two that are as near the even one. */
function rounded(x, type) {
  if (type === 'float32' || type === 'float64') return x;
  if (type === 'bfloat16') return fromBits((bitsOf(x) + 0x7fff + ((bitsOf(x) >>> 16) & 1)) & 0xffff0000);
  if (type !== 'float16') unknown(type);
  const unit = 2 ** Math.max(Math.floor(Math.log2(Math.abs(x) || 1)) - 10, -24);
  const whole = Math.floor(x / unit), rest = x / unit - whole;
  return (whole + (rest > 0.5 || (rest === 0.5 && whole % 2) ? 1 : 0)) * unit;
}

// Drawn tensors.

/** Draws a tensor, and compares its bytes with the digest. */
async function drawn({ shape: [rows, columns], dtype, draw, sha256 }, text) {
  const matrix = await numbersOf({ rows, columns, dtype, draw }, text), flat = matrix.flat();
  const bits = { float32: () => new Float32Array(flat), float64: () => new Float64Array(flat), bfloat16: () => new Uint16Array(flat.map((x) => bitsOf(x) >>> 16)) }[dtype];
  if (bits) {
    const digest = new Uint8Array(await crypto.subtle.digest('SHA-256', bits().buffer));
    if (![...digest].map((byte) => byte.toString(16).padStart(2, '0')).join('').startsWith(sha256)) unknown(`how ${text} was drawn`);
  }
  return matrix;
}

async function numbersOf({ rows, columns, dtype, draw }, text) {
  const [[kind, amount]] = Object.entries(draw);
  const digest = await crypto.subtle.digest('SHA-256', new TextEncoder().encode(text));
  const key = [0, 8].map((at) => new DataView(digest).getBigUint64(at, true));
  if (kind === 'choice') {
    const integers = philox(key, amount);
    const places = range(amount).sort((i, j) => (integers[i] < integers[j] ? -1 : integers[i] > integers[j] ? 1 : 0));
    return places.slice(0, rows).map((place) => [Math.floor(place / 256), place % 256]);
  }
  const words = philox(key, Math.ceil((rows * columns) / 2)).flatMap((integer) => [Number(integer & 0xffffffffn), Number(integer >> 32n)]);
  const numbers = words.slice(0, rows * columns).map((word) => {
    const u = (word + 0.5) * 2 ** -32;
    if (kind === 'constant') return amount;
    if (kind === 'uniform') return amount[0] + (amount[1] - amount[0]) * u;
    return kind === 'normal' ? amount * quantile(u) : unknown(kind);
  });
  return table(numbers.map((x) => rounded(Math.fround(x), dtype)), columns);
}

export function philox([k0, k1], count) {
  const mask = (1n << 64n) - 1n, found = [];
  for (let counter = 1n; found.length < count; counter += 1n) {
    let c = [counter, 0n, 0n, 0n], [a, b] = [k0, k1];
    for (let round = 0; round < 10; round++) {
      const [one, other] = [0xd2e7470ee14c6c93n * c[0], 0xca5a826395121157n * c[2]];
      c = [(other >> 64n) ^ c[1] ^ a, other & mask, (one >> 64n) ^ c[3] ^ b, one & mask];
      [a, b] = [(a + 0x9e3779b97f4a7c15n) & mask, (b + 0xbb67ae8584caa73bn) & mask];
    }
    found.push(...c);
  }
  return found.slice(0, count);
}

const polynomial = (coefficients, x) => coefficients.reduce((value, coefficient) => value * x + coefficient);

export function quantile(u) {
  const q = u - 0.5;
  if (Math.abs(q) <= 0.425) {
    const t = 0.180625 - q * q, top = polynomial([59.10937472, 159.29113202, 50.434271938, 3.3871327179], t);
    return (q * top) / polynomial([67.1875636, 78.757757664, 17.895169469, 1], t);
  }
  let m = Math.min(u, 1 - u), e = 0;
  for (; m < 0.5; m *= 2) e -= 1;
  const y = (m - 1) / (m + 1), series = polynomial(range(11).map((i) => 1 / (21 - 2 * i)), y * y);
  const t = Math.sqrt(-e * 0.6931471805599453 - 2 * y * series) - 1.6;
  const top = polynomial([0.17023821103, 1.3067284816, 2.75681539, 1.4234372777], t);
  return (Math.sign(q) * top) / polynomial([0.12021132975, 0.7370016425, 1], t);
}

// Terms.

/** Returns what is added to the weight of a module. */
function change(terms, { module, shape, expert, rank, weight }, x) {
  const [last, { mu }] = terms.at(-1), matrices = (some) => some.map(([term, t]) => matrix(term, t, ...shape, x));
  if (last.transform !== 'magnitude') {
    const rows = terms.map(([term, t]) => factor(term, t, 'A', shape[1]).length).reduce((one, other) => one + other);
    if (rank !== undefined && rows !== rank) unknown(`another rank of ${module}`);
    return sum(matrices(terms));
  }
  if (!weight) unknown(`the weight of ${module}, which \`magnitude\` scales: pass \`weights\``);
  const fits = [mu.length, mu[0].length, weight.length, weight[0].length].join() === [1, shape[0], ...shape].join();
  if (!fits || expert !== undefined) unknown(`such a magnitude at ${module}`);
  const whole = sum([weight, ...matrices(terms.slice(0, -1))]);
  const g = whole.map((row, i) => {
    const [before, after] = [Math.hypot(...weight[i]), Math.hypot(...row)];
    return (1 + mu[0][i]) * (last.options.plain || before === after ? 1 : before / Math.max(after, before / 1000));
  });
  return sum([scaled(whole, (i) => g[i]), scaled(weight, () => -1)]);
}

function matrix(term, t, dOut, dIn, x) {
  let [rank, out] = [t.gain_rank?.[0], t.gain_out?.[0]];
  if (term.transform === 'Experts') {
    const logits = t.G.map((row) => row.reduce((total, g, i) => total + g * x[i], 0));
    const chances = logits.map((logit) => Math.exp(logit - Math.max(...logits)));
    const total = chances.reduce((one, other) => one + other);
    rank = chances.flatMap((chance) => Array(term.rank).fill(chance / total));
  }
  const [a, b] = [factor(term, t, 'A', dIn), factor(term, t, 'B', dOut)];
  return times(scaled(transposed(b), (i, j) => term.scale * (rank ? rank[j] : 1) * (out ? out[i] : 1)), a);
}

/** Returns the effective factor X of a term, whose side is d wide. */
function factor({ transform, options: o, rank: r }, t, x, d) {
  const own = t[x], isA = x === 'A';
  const product = (row, other) => row.flatMap((k) => other.map((value) => k * value));
  switch (transform) {
    case 'Identity': return own;
    case 'SS': {
      const spare = own[0].length - d;
      const start = { leading: 0, trailing: spare, centre: Math.floor(spare / 2) }[o.slice];
      return cut(own, start, start + d);
    }
    case 'KE': {
      const k = t[`K_${x}`];
      return cut(o.rowwise ? own.map((row, i) => product(k[i], row)) : k.flatMap((row) => own.map((other) => product(row, other))), 0, d);
    }
    case 'GT': {
      const [p, q] = [times(t.A, transposed(t.G_iu)), times(t.B, transposed(t.G_od))];
      if (r < o.gate_rank) return isA ? times(p, t.G_id) : times(q, t.G_ou);
      return isA ? t.G_id : times(times(transposed(p), q), t.G_ou);
    }
    case 'Basis': case 'Mix': return cut(weighed(t[`c_${x}`] ?? t[`m_${x}`], own, r), 0, d);
    case 'Loadings': return times(t[`L_${x}`], cut(own, 0, d));
    case 'Core': {
      if (isA) return cut(own, 0, d);
      const cores = [weighed(t.c, t.core, r), t.core_2, t.core_3].slice(0, o.cores);
      return times(cores.reduce(times), cut(own, 0, d));
    }
    case 'BlockDiagonal': return o.cut === (isA ? 'out' : 'in') ? own : diagonal(own, o.blocks);
    case 'Grid': return table(own, isA ? r : r / o.blocks).flatMap((rows) => diagonal(rows, o.blocks));
    case 'Hadamard': return own.flatMap((row) => t[`${x}_2`].map((other) => other.map((value, j) => row[j] * value)));
    case 'MiSS': return isA ? range(r).map((i) => range(d).map((j) => Number(j % r === i))) : cut(own, 0, d);
    case 'Rotation': {
      const count = o[`chunks_${x}`], stride = o.stride ?? Math.max(Math.floor(r / count), 1);
      return cut(beside(range(count).map((k) => own.map((_, i) => own[(i + k * (r - stride % r)) % r]))), 0, d);
    }
    case 'Shards': {
      const pieces = table(own.flat(), own[0].length / o.shards);
      return table(t[`I_${x}`].flatMap(([high, low]) => pieces[(256 * high + low) % pieces.length]), d);
    }
    case 'VectorBank': {
      const weights = t[`L_${x}`].map((row) => {
        // Of equal logits the first: sorting keeps their order.
        const places = range(row.length).sort((i, j) => (row[i] > row[j] ? -1 : row[i] < row[j] ? 1 : 0)).slice(0, o.top_k);
        const chosen = row.map((logit, i) => (places.includes(i) ? Math.exp(logit - row[places[0]]) : 0));
        return chosen.map((weight) => weight / chosen.reduce((one, other) => one + other));
      });
      return table(times(weights, t.bank).flat(), d);
    }
    case 'Experts': return isA ? range(o.count).flatMap(() => own) : own;
    default: return unknown(transform);
  }
}

/** Adds up the matrices of r rows that lie one below the other in a; without weights there is one. */
const weighed = (weights, a, r) => (weights ? sum(table(a, r).map((rows, i) => scaled(rows, () => weights[0][i]))) : a);

/** Puts equal parts of the columns of a along a diagonal. */
function diagonal(a, count) {
  const part = a[0].length / count;
  return range(count).flatMap((i) => a.map((row) => row.map((x, j) => (Math.floor(j / part) === i ? x : 0))));
}

if (globalThis.process?.argv[1] === new URL(import.meta.url).pathname) {
  const { readFileSync } = await import('node:fs');
  const [folder, name] = process.argv.slice(2);
  const names = ['adapter_model', ...(name ? [`adapters/${name}`] : [])];
  const files = names.map((file) => new Uint8Array(readFileSync(`${folder}/${file}.safetensors`)));
  const { updates, full } = await read(readFileSync(`${folder}/adapter_config.json`, 'utf8'), files);
  for (const [place, value] of Object.entries({ ...updates, ...full })) {
    console.log(`${place}  ${typeof value === 'function' ? 'a function of x' : Math.hypot(...value.flat())}`);
  }
}
