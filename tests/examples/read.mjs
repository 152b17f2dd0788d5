// Reads the adapters of a folder by examples/reader.mjs, and writes as JSON lines how far each is from what is expected.
//   node read.mjs FOLDER
import { readdirSync, readFileSync } from 'node:fs';
import { read, safetensors } from '../../examples/reader.mjs';

const applied = (matrix, x) => matrix.map((row) => row.reduce((total, value, i) => total + value * x[i], 0));
const root = process.argv[2];
for (const folder of readdirSync(root, { withFileTypes: true })) {
  if (!folder.isDirectory() || folder.name.startsWith('_')) continue;
  const names = readdirSync(`${root}/${folder.name}`);
  const bytes = (file) => new Uint8Array(readFileSync(`${root}/${folder.name}/${file}.safetensors`));
  for (const file of readdirSync(`${root}/${folder.name}`)) {
    const [, name] = file.match(/^expected(?:-(\w+))?\.safetensors$/) ?? [null, null];
    if (name === null) continue;
    const files = [bytes('adapter_model'), ...(name ? [bytes(`adapters/${name}`)] : [])];
    const config = readFileSync(`${root}/${folder.name}/adapter_config.json`, 'utf8');
    const weights = names.includes('base.safetensors') ? safetensors(bytes('base')) : {};
    if (JSON.parse(config).bishare.sharing.needs?.includes('base')) {
      // It decomposes no matrices, and says so.
      const refused = await read(config, files, weights).then(() => '', (error) => error.message);
      console.log(JSON.stringify({ folder: folder.name, file, worst: /does not know: base/.test(refused) ? 0 : null, left: [] }));
      continue;
    }
    const { updates, full } = await read(config, files, weights);
    const expected = safetensors(bytes(file.replace('.safetensors', '')));
    let worst = 0;
    const places = new Set([...Object.keys(updates), ...Object.keys(full)]);
    for (const [place, value] of Object.entries(expected)) {
      if (place.endsWith('.x')) continue;
      const module = place.replace(/\.y$/, '');
      const found = places.delete(module) && { ...updates, ...full }[module];
      const numbers = (module === place ? found : expected[`${module}.x`].map((x) => applied(found(x), x))).flat();
      const wanted = value.flat(), most = Math.max(...wanted.map(Math.abs));
      if (numbers.length !== wanted.length) worst = NaN;
      wanted.forEach((x, i) => (worst = Math.max(worst, Math.abs(x - numbers[i]) / most)));
    }
    console.log(JSON.stringify({ folder: folder.name, file, worst, left: [...places] }));
  }
}
