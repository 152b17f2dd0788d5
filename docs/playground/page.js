// What is on the page; the compiler runs in a worker, so that the page goes on answering.
const at = (id) => document.getElementById(id);
const status = at('status');
const worker = new Worker(new URL('worker.js', import.meta.url), { type: 'module' });
let texts = {};

function options(select, names, chosen) {
  select.replaceChildren(...names.map((name) => new Option(name, name, name === chosen, name === chosen)));
}

function busy(what) {
  for (const button of document.querySelectorAll('#commands button')) button.disabled = Boolean(what);
  status.textContent = what;
}

function run(command) {
  busy(`bishare ${command} …`);
  at('answer').textContent = '';
  at('picture').hidden = true;
  worker.postMessage({ command, text: at('spec').value, model: at('model').value });
}

const told = {
  loading: ({ what }) => busy(`Loading ${what} …`),
  ready: ({ models, specs }) => {
    texts = specs;
    options(at('model'), models, 'llama-7b');
    options(at('specs'), Object.keys(specs), 'bishare_ke');
    at('spec').value = texts.bishare_ke;
    at('workbench').hidden = false;
    busy('');
  },
  answer: ({ output, text, page }) => {
    at('answer').textContent = output;
    at('spec').value = text;
    at('picture').hidden = !page;
    at('picture').srcdoc = page ?? '';
    busy('');
  },
  broken: ({ why }) => (status.textContent = `The playground cannot start: ${why}`),
};

worker.onmessage = ({ data }) => told[data.kind](data);
worker.onerror = ({ message }) => told.broken({ why: message ?? 'its worker does not load' });
at('specs').onchange = () => (at('spec').value = texts[at('specs').value]);
for (const button of document.querySelectorAll('#commands button')) {
  button.onclick = () => run(button.dataset.command);
}
at('spec').onkeydown = (event) => {
  if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) run('check');
};

// What a trained adapter shares, by a reader of its format that knows nothing of bishare.
async function shown(files) {
  const { read } = await import(new URL('runtime/reader.mjs', import.meta.url));
  const config = files.find(({ name }) => name === 'adapter_config.json');
  const tensors = files.filter(({ name }) => name.endsWith('.safetensors'));
  if (!config || !tensors.length) throw new Error('choose both files');
  const bytes = await Promise.all(tensors.map(async (file) => new Uint8Array(await file.arrayBuffer())));
  const { sharing, updates, full } = await read(await config.text(), bytes);
  const uses = Object.keys(sharing.tensors).map((name) => {
    const { shape, draw } = sharing.tensors[name];
    const users = sharing.modules.filter(({ terms }) => terms.some((term) => Object.values(term.tensors).includes(name)));
    return `${name}  ${shape.join(' x ')}${draw ? ', drawn' : ''}: ${users.length} module${users.length === 1 ? '' : 's'}`;
  });
  const norm = (value) => (typeof value === 'function' ? 'by its input' : Math.hypot(...value.map((row) => Math.hypot(...row))).toPrecision(4));
  const sizes = Object.entries({ ...updates, ...full }).map(([place, value]) => `${place}  ${norm(value)}`);
  return ['Tensors, and how many modules share each', ...uses, '', 'Norms of updates', ...sizes].join('\n');
}

at('files').onchange = async ({ target }) => {
  at('shares').textContent = 'Reading …';
  at('shares').textContent = await shown([...target.files]).catch(({ message }) => `This cannot be read: ${message}`);
};
