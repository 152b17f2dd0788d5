// What is on the page; the compiler runs in a worker, so that the page goes on answering.
const at = (id) => document.getElementById(id);
const spec = at('spec'), status = at('status');
const worker = new Worker(new URL('worker.js', import.meta.url), { type: 'module' });
let texts = {}, words = {}, running = null, next = null, timer = null;

// Six lines to change; the same spec as in the README.
const FIRST = 'a first spec';
texts[FIRST] = `# Change a line: the answer and the picture follow.
spec mine
target q_proj, k_proj, v_proj, up_proj, down_proj
share own    per module      rank 1
share kinds  per kind        rank 8
share block  per layer // 2  rank 4  via SS
`;

function options(select, names, chosen) {
  select.replaceChildren(...names.map((name) => new Option(name, name, name === chosen, name === chosen)));
}

// One command runs at a time; of those asked for meanwhile the last one follows.
function run(command) {
  clearTimeout(timer);
  next = { command, text: spec.value, model: at('model').value };
  pump();
}

function pump() {
  if (running || !next) return;
  [running, next] = [next, null];
  status.textContent = `bishare ${running.command} …`;
  worker.postMessage(running);
}

function soon() {
  clearTimeout(timer);
  timer = setTimeout(() => run('check'), 350);
}

function draw(picture) {
  // A frame that was emptied stays blank in Chromium, so each picture has a frame of its own.
  const frame = at('picture').cloneNode();
  frame.hidden = false;
  frame.classList.remove('stale');
  frame.srcdoc = picture;
  at('picture').replaceWith(frame);
}

function write(text) {
  spec.value = text;
  colour();
}

// Colours lie under the text, which is transparent: the same letters at the same places.
const PARTS = /(#[^\n]*)|("[^"\n]*")|([0-9][\w.]*)|([A-Za-z_]\w*)|([^])/g;

function colour() {
  const parts = [...`${spec.value}\n`.matchAll(PARTS)].map(([all, comment, quoted, number, word]) => {
    const kind = comment ? 'c' : quoted ? 's' : number ? 'm' : words.keywords?.includes(word) ? 'k' : '';
    const part = document.createElement(kind ? 'span' : 'i');
    if (kind) part.className = kind;
    part.textContent = all;
    return part;
  });
  at('colours').replaceChildren(...parts);
  at('colours').scrollTop = spec.scrollTop;
  at('colours').scrollLeft = spec.scrollLeft;
}

const begun = () => spec.value.slice(0, spec.selectionStart).match(/[A-Za-z_]\w*$/)?.[0] ?? '';

function offer() {
  const word = begun();
  const own = spec.value.match(/[A-Za-z_]\w*/g) ?? [];
  const known = [...new Set([...Object.keys(words.meanings ?? {}), ...own])];
  const found = word ? known.filter((one) => one.startsWith(word) && one !== word).slice(0, 8) : [];
  at('words').replaceChildren(...found.map((one) => {
    const button = document.createElement('button');
    button.textContent = one;
    button.title = words.meanings[one] ?? '';
    button.onmousedown = (event) => (event.preventDefault(), take(one));
    return button;
  }));
}

function take(word) {
  const end = spec.selectionStart;
  spec.setRangeText(word, end - begun().length, end, 'end');
  at('words').replaceChildren();
  colour();
  soon();
}

async function share() {
  const said = new URLSearchParams({ model: at('model').value, spec: spec.value });
  history.replaceState(null, '', `#${said}`);
  await navigator.clipboard?.writeText(location.href).catch(() => null);
  status.textContent = 'The address of this page is a link to the spec, and is copied.';
}

const told = {
  loading: ({ what, part }) => {
    at('bar').value = part;
    status.textContent = `Loading ${what} …`;
  },
  ready: ({ models, specs, ...more }) => {
    texts = { ...texts, ...specs };
    words = more;
    const linked = new URLSearchParams(location.hash.slice(1));
    const model = models.includes(linked.get('model')) ? linked.get('model') : 'llama-7b';
    options(at('model'), models, model);
    options(at('specs'), Object.keys(texts), FIRST);
    write(linked.get('spec') ?? texts[FIRST]);
    at('bar').remove();
    at('workbench').hidden = false;
    status.textContent = '';
    run('check');
  },
  answer: ({ output, text, picture }) => {
    at('answer').textContent = output;
    at('answer').classList.toggle('long', running.command === 'plan');
    if (running.command === 'fmt' && spec.value === running.text) write(text);
    if (picture) draw(picture);
    else if (running.command === 'check') at('picture').classList.add('stale');
    const formatted = running.command === 'fmt';
    running = null;
    status.textContent = '';
    if (formatted && !next) run('check');
    pump();
  },
  broken: ({ why }) => (status.textContent = `The playground cannot start: ${why}`),
};

worker.onmessage = ({ data }) => told[data.kind](data);
worker.onerror = ({ message }) => told.broken({ why: message ?? 'its worker does not load' });
at('specs').onchange = () => (write(texts[at('specs').value]), run('check'));
at('model').onchange = () => run('check');
at('link').onclick = share;
for (const button of document.querySelectorAll('#commands [data-command]')) {
  button.onclick = () => run(button.dataset.command);
}
spec.oninput = () => (colour(), offer(), soon());
spec.onscroll = colour;
spec.onblur = () => at('words').replaceChildren();
spec.onkeydown = (event) => {
  const [first] = at('words').children;
  if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) run('check');
  if (event.key === 'Tab' && first) (event.preventDefault(), take(first.textContent));
};
