package picture

import (
	"bytes"
	"fmt"
	"io"
)

// Page is a picture with what belongs to it, as a document.
type Page struct {
	Picture Picture
	Lead    []string // paragraphs above the picture
	Head    []string // of the table
	Rows    [][]string
	Notes   []string // paragraphs under the table
}

// HTML writes the page, which needs nothing else.
func (p Page) HTML(w io.Writer) error {
	var b bytes.Buffer
	title := escape(p.Picture.Title)
	fmt.Fprintf(&b, "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n<meta name=\"color-scheme\" content=\"light dark\">\n<title>%s</title>\n<style>%s</style>\n<main>\n<h1>%s</h1>\n", title, pageStyle, title)
	paragraphs := func(class string, list []string) {
		for _, s := range list {
			fmt.Fprintf(&b, "<p class=\"%s\">%s</p>\n", class, escape(s))
		}
	}
	paragraphs("lead", p.Lead)
	picture := p.Picture
	picture.Title, picture.Subtitle = "", ""
	b.WriteString("<figure>\n")
	if err := picture.svg(&b, p.Picture.Title); err != nil {
		return err
	}
	b.WriteString("</figure>\n")
	if len(p.Rows) > 0 {
		b.WriteString("<table>\n<thead><tr>")
		for _, cell := range p.Head {
			fmt.Fprintf(&b, "<th scope=\"col\">%s</th>", escape(cell))
		}
		b.WriteString("</tr></thead>\n<tbody>\n")
		for _, row := range p.Rows {
			b.WriteString("<tr>")
			for _, cell := range row {
				fmt.Fprintf(&b, "<td>%s</td>", escape(cell))
			}
			b.WriteString("</tr>\n")
		}
		b.WriteString("</tbody>\n</table>\n")
	}
	paragraphs("note", p.Notes)
	b.WriteString("</main>\n</html>\n")
	if _, err := w.Write(b.Bytes()); err != nil {
		return fmt.Errorf("write page: %w", err)
	}
	return nil
}

const pageStyle = `
:root{color-scheme:light dark;--ground:#fff;--ink:#1c2024;--quiet:#5b6470;--faint:#e4e7eb}
@media (prefers-color-scheme:dark){:root{--ground:#14171b;--ink:#e8eaed;--quiet:#9aa4b0;--faint:#2a3037}}
body{margin:0;background:var(--ground);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
main{max-width:60rem;margin:0 auto;padding:2rem 1.25rem 3rem}
h1{font-size:1.5rem;line-height:1.25;margin:0 0 .75rem}
.lead{max-width:44rem;margin:.4rem 0}.note{max-width:44rem;color:var(--quiet);margin:.4rem 0}
figure{margin:1.5rem 0;overflow-x:auto}figure svg{display:block;width:100%;min-width:40rem;height:auto}
table{border-collapse:collapse;margin:1rem 0 1.5rem;font-variant-numeric:tabular-nums}
th,td{text-align:right;padding:.25rem .9rem;border-bottom:1px solid var(--faint)}
th:first-child,td:first-child{text-align:left;padding-left:0}
th{font-weight:600;color:var(--quiet);font-size:.85rem}
@media print{:root{--ground:#fff;--ink:#000;--quiet:#444;--faint:#ccc}main{max-width:none;padding:0}figure,tr{break-inside:avoid}figure svg{min-width:0}thead{display:table-header-group}}
`
