const plan = data;
let pinned = null;
whenChosen = () => pick(null);

function runs(layers) {
  const found = [];
  for (const layer of layers) {
    const last = found[found.length - 1];
    if (last && last[1] === layer - 1) last[1] = layer;
    else found.push([layer, layer]);
  }
  return found.map(([a, b]) => (a === b ? a : a + '-' + b)).join(', ');
}

function members(panel, sites) {
  if (sites.length <= 8) return sites.map(i => plan.sites[i][1]);
  const rows = new Map();
  for (const i of sites) {
    const row = panel.at[i], [layer] = plan.sites[i];
    if (layer === null) continue; // It is in no layer, and its row says all.
    if (!rows.has(row)) rows.set(row, []);
    rows.get(row).push(layer);
  }
  const lines = [...rows].map(([row, layers]) => panel.rows[row] + ': layer' + (layers.length > 1 ? 's ' : ' ') + runs(layers));
  return lines.length <= 12 ? lines : [...lines.slice(0, 10), 'and ' + number(lines.length - 10) + ' more'];
}

// Who uses the tensors, in words: `5 modules of layer 3 share A and B`.
function heading(sites, roles) {
  if (sites.length === 1) return roles + ' of this module alone';
  const layers = [...new Set(sites.map(i => plan.sites[i][0]))].filter(layer => layer !== null).sort((a, b) => a - b);
  return number(sites.length) + ' modules' + (layers.length ? ' of layer' + (layers.length > 1 ? 's ' : ' ') + runs(layers) : '') + ' share ' + roles;
}

const sitesOf = rect => rect.dataset.i.split(' ').map(Number);

function describe(figure, pool, inside) {
  const [share, panel] = figure.dataset.panel.split(' ').map(Number);
  const section = plan.shares[share], drawn = section.panels[panel];
  const lines = [];
  if (pool !== null) {
    const sites = [...figure.querySelectorAll('svg g[data-p="' + pool + '"] rect')].flatMap(sitesOf);
    const roles = drawn.pools[pool].map(([role]) => role).join(', ').replace(/, ([^,]*)$/, ' and $1');
    lines.push(line(heading(sites, roles), 'name'));
    for (const [role, rows, columns, init, trainable] of drawn.pools[pool]) {
      lines.push(line(role + ': ' + number(rows) + ' × ' + number(columns) + ' = ' + number(rows * columns) +
        (trainable ? ' trainable' : ' frozen') + ' parameters, initial values ' + init, 'shape'));
    }
    if (sites.length > 1) lines.push(line(members(drawn, sites).join('\n'), 'members'));
  }
  if (inside !== null) {
    const [site] = inside, [layer, path, d_in, d_out] = plan.sites[site], row = drawn.rows[drawn.at[site]];
    const own = section.own.kinds[section.own.sites[site]] || [];
    const folded = row.includes('-') && layer !== null;
    lines.push(line('at ' + (folded ? 'layer ' + layer + ', ' + row : path) + ', ' + number(d_in) + ' → ' + number(d_out) +
      (pool === null ? ': not in this share' : '') +
      (own.length ? '; private: ' + own.map(([role, rows, columns]) => [role, number(rows), '×', number(columns)].join('\u00a0')).join(', ') : ''), 'site'));
  }
  tip.replaceChildren(...lines);
}

function pick(figure, pool) {
  document.querySelectorAll('svg.pick').forEach(svg => {
    svg.classList.remove('pick');
    svg.querySelectorAll('g.on').forEach(group => group.classList.remove('on'));
  });
  if (figure && pool !== null) {
    figure.querySelector('svg').classList.add('pick');
    figure.querySelector('svg g[data-p="' + pool + '"]').classList.add('on');
  }
  if (!figure) tip.hidden = true;
}

function at(event) {
  const target = event.target.closest('rect[data-i], li[data-p]');
  const figure = target && target.closest('figure');
  if (!figure) return null;
  const group = target.closest('[data-p]');
  return { figure, pool: group ? +group.dataset.p : null, inside: target.dataset.i ? sitesOf(target) : null };
}

document.addEventListener('pointermove', event => {
  const over = at(event);
  if (!over) {
    tip.hidden = true;
    if (!pinned) pick(null);
    else pick(pinned.figure, pinned.pool);
    return;
  }
  pick(over.figure, over.pool);
  describe(over.figure, over.pool, over.inside);
  tip.hidden = false;
  place(event);
});
document.addEventListener('click', event => {
  const over = at(event);
  pinned = over && !(pinned && pinned.figure === over.figure && pinned.pool === over.pool) ? over : null;
});
