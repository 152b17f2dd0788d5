function cellAt(event) {
  const svg = event.target.closest('figure[data-chart] svg');
  if (!svg) return null;
  const chart = data.charts[+svg.closest('figure').dataset.chart];
  const box = svg.getBoundingClientRect(), drawn = svg.viewBox.baseVal.width / box.width;
  const column = Math.floor(((event.clientX - box.left) * drawn - chart.left) / chart.cell);
  const row = Math.floor(((event.clientY - box.top) * drawn - chart.top) / chart.cell);
  const n = chart.labels.length;
  return row >= 0 && row < n && column >= 0 && column < n ? { chart, row, column } : null;
}

document.addEventListener('pointermove', event => {
  const over = cellAt(event);
  tip.hidden = !over;
  if (!over) return;
  const value = over.chart.values[over.row][over.column];
  tip.replaceChildren(
    line(over.chart.labels[over.row] + ', ' + over.chart.labels[over.column], 'name'),
    line(value === null ? 'their widths differ' : value.toFixed(3), 'value'));
  place(event);
});
