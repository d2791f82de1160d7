"""What the pages share: a chart without dependencies, a style sheet, and filling a template.

`chart.js` draws lines, and says at its top how it is used; `style.css` has the colours, light and
dark, that it draws with; `fill` puts both and the numbers into a template.
"""
