// Python and bishare, from the files that `make playground` puts into `runtime`.
const here = new URL('runtime/', import.meta.url);
const tell = (kind, more) => postMessage({ kind, ...more });

async function fetched(name) {
  const response = await fetch(new URL(name, here));
  if (!response.ok) throw new Error(`${name} is not there: ${response.status}. \`make playground\` puts it there.`);
  return response;
}

async function start() {
  const { wheels } = await (await fetched('runtime.json')).json();
  tell('loading', { what: 'Python', part: 0.05 });
  const { loadPyodide } = await import(new URL('pyodide.mjs', here));
  const python = await loadPyodide({ indexURL: here.href });
  for (const [i, wheel] of wheels.entries()) {
    tell('loading', { what: wheel.split('-')[0], part: 0.5 + (0.5 * i) / wheels.length });
    python.unpackArchive(await (await fetched(`wheels/${wheel}`)).arrayBuffer(), 'wheel');
  }
  const code = await (await fetch(new URL('playground.py', import.meta.url))).text();
  python.runPython(code);
  const [known, run] = ['known', 'run'].map((name) => python.globals.get(name));
  onmessage = ({ data: { command, text, model } }) => {
    tell('answer', JSON.parse(run(command, text, model)));
  };
  tell('ready', JSON.parse(known()));
}

start().catch((error) => tell('broken', { why: error.message }));
