"""Style sheet of reports, for light and dark, wide and narrow pages."""

CSS = """
:root {
  color-scheme: light dark;
  --page: #f6f7f9; --card: #ffffff; --text: #20232b; --faint: #5c6370; --line: #dfe3e9;
  --good: #0a6b5e; --good-back: #e0f4f0; --warn: #8f4a00; --warn-back: #fff0d9;
  --bad: #b0173a; --bad-back: #fde7ec; --accent: #2563eb;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #14161b; --card: #1d2027; --text: #e6e8ee; --faint: #9aa1ae; --line: #2f343f;
    --good: #5fdcc9; --good-back: #12332f; --warn: #ffc069; --warn-back: #3a2a10;
    --bad: #ff8fa5; --bad-back: #3d1a23; --accent: #6ea8fe;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0; background: var(--page); color: var(--text);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
}
main { max-width: 1080px; margin: 0 auto; padding: 48px 24px 72px; }
h1 { font-size: clamp(1.55rem, 4.2vw, 2.3rem); line-height: 1.2; letter-spacing: -0.015em;
  margin: 6px 0 14px; max-width: 26em; text-wrap: balance; }
h2 { font-size: 1.25rem; letter-spacing: -0.01em; margin: 56px 0 6px; }
h3 { font-size: 1rem; margin: 0 0 2px; }
p { margin: 0 0 12px; max-width: 44em; }
.eyebrow { color: var(--accent); font-weight: 600; font-size: 0.85rem; margin: 0; }
.lead { font-size: 1.1rem; }
.faint, figcaption { color: var(--faint); font-size: 0.88rem; }
.cards { display: grid; gap: 16px; margin: 26px 0 0;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 280px), 1fr)); }
.card, figure { background: var(--card); border: 1px solid var(--line); border-radius: 12px; }
.card { padding: 18px 20px 20px; border-top: 4px solid var(--model, var(--line)); }
.badge { display: inline-block; border-radius: 99px; padding: 2px 11px; font-weight: 600;
  font-size: 0.82rem; margin: 6px 0 12px; }
.good { color: var(--good); background: var(--good-back); }
.warn { color: var(--warn); background: var(--warn-back); }
.bad { color: var(--bad); background: var(--bad-back); }
.figures { display: grid; grid-template-columns: auto 1fr; gap: 4px 14px; margin: 0;
  align-items: baseline; }
.figures dt { color: var(--faint); font-size: 0.88rem; }
.figures dd { margin: 0; text-align: right; font-variant-numeric: tabular-nums; }
.figures b { font-size: 1.2rem; }
.figures small { display: block; color: var(--faint); font-size: 0.82rem; white-space: nowrap; }
.remark { margin: 14px 0 0; padding-left: 12px; border-left: 3px solid var(--warn);
  font-size: 0.9rem; }
.row { display: grid; gap: 16px; margin: 16px 0;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 300px), 1fr)); }
.two { grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr)); }
figure { margin: 0; padding: 16px 18px; min-width: 0; }
figure img { display: block; width: 100%; height: auto; margin-top: 8px; }
figcaption { margin-top: 8px; }
figure picture img { max-width: 600px; }
.four { grid-template-columns: repeat(auto-fit, minmax(min(100%, 230px), 1fr)); }
.sheets { display: grid; gap: 14px; margin: 16px 0;
  grid-template-columns: repeat(auto-fit, minmax(220px, 1fr)); }
.sheets figure { padding: 12px 14px; max-width: 420px; }
figure .sheet { border-radius: 6px; max-width: 720px; }
.again { display: none; }
.scroll { overflow-x: auto; background: var(--card); border: 1px solid var(--line);
  border-radius: 12px; margin: 16px 0 8px; }
table { border-collapse: collapse; width: 100%; font-size: 0.92rem;
  font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: 10px 14px; border-bottom: 1px solid var(--line);
  white-space: nowrap; vertical-align: top; }
tr:last-child > * { border-bottom: 0; }
th:first-child { text-align: left; position: sticky; left: 0; background: var(--card); }
thead th { color: var(--faint); font-weight: 600; font-size: 0.82rem; }
td small { display: block; color: var(--faint); }
.left th { white-space: normal; font-weight: 400; color: var(--faint); }
.left td { text-align: left; white-space: normal; overflow-wrap: break-word; }
.four th, .four td { padding: 7px 12px; }
.four td { white-space: nowrap; }
.dot { display: inline-block; width: 10px; height: 10px; border-radius: 50%; margin-right: 8px;
  background: var(--model); }
.key { display: inline-block; width: 11px; height: 11px; border: 2.5px solid; border-radius: 2px;
  margin-right: 4px; vertical-align: -1px; }
.meaning dt { font-weight: 600; margin-top: 12px; }
.meaning dd { margin: 0; max-width: 44em; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 12px 16px; overflow-x: auto; font-size: 0.9rem; max-width: 44em; }
@media (max-width: 760px) {
  .sheets { grid-template-columns: 1fr 1fr; gap: 10px; }
  .sheets figure { padding: 8px 10px; }
  .sheets .again { display: block; }
}
@media (max-width: 560px) {
  main { padding: 28px 14px 48px; }
  figure { padding: 12px; }
  th, td { padding: 9px 10px; }
}
@media print { body { background: none; } figure, .card, tr { break-inside: avoid; } }
"""
