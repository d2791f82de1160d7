"""What the pages share: charts without dependencies, a style sheet, and filling a template.

`chart.js` draws lines, `heatmap.js` heat maps, and each says at its top how it is used; `style.css`
has the colours, light and dark, that they draw with; `fill` puts all that and the numbers into a
template.
"""
