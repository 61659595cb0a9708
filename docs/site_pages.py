"""MkDocs hook: pages from README, CONTRIBUTING and CHANGELOG, links to files, and API pages.

Pages are written for the repository, so their links are relative to the file they stand in. On the
site a link to a source file, a notebook or a folder leads to a page that shows it. A link to a file
that does not exist fails `mkdocs build --strict`. In docs/api a line `::: PACKAGE` stands for all
modules of the package.
"""

import json
import pathlib
import posixpath
import re

from mkdocs.structure.files import File, InclusionLevel

ROOT = pathlib.Path(__file__).resolve().parents[1]
# Repository files that are pages of the site under another name.
TOP_PAGES = {
  "README.md": "index.md",
  "CONTRIBUTING.md": "contributing.md",
  "CHANGELOG.md": "changelog.md",
}
LINK = re.compile(r"(?<=\]\()(?!\w+:|/)([^)\s#]+)(?=[#)\s])")
PACKAGE = re.compile(r"^::: (\S+)$", flags=re.MULTILINE)
LANGUAGES = {".py": "python", ".sh": "bash", ".yml": "yaml", ".toml": "toml"}


def on_files(files, config):
  """Adds a page for each of `TOP_PAGES`, each notebook, and each file that a page links to."""
  texts = {f"docs/{file.src_uri}": file.content_string for file in files.documentation_pages()}
  texts |= {source: (ROOT / source).read_text() for source in TOP_PAGES}
  texts |= {f"notebooks/{path.name}": _show(path) for path in (ROOT / "notebooks").glob("*.ipynb")}
  linked = {target for source, text in texts.items() for target in _targets(source, text)}
  for source, page in TOP_PAGES.items():
    files.append(File.generated(config, page, content=texts[source]))
  for target in sorted(linked | set(texts)):
    page = _page(target)
    if page.startswith("repository/") and (ROOT / target).exists():
      content = f"# {target}\n\n{texts.get(target) or _show(ROOT / target)}"
      inclusion = InclusionLevel.NOT_IN_NAV
      files.append(File.generated(config, page, content=content, inclusion=inclusion))
  return files


def on_page_markdown(markdown, *, page, config, files):
  """Points each relative link at the page that it names on the site; lists a package's modules."""
  here = page.file.src_uri
  source = next((s for s, p in TOP_PAGES.items() if p == here), f"docs/{here}")
  if here.startswith("repository/"):
    source = here.removeprefix("repository/").removesuffix(".md")

  def rewrite(match):
    target = _resolve(source, match[1])
    return posixpath.relpath(_page(target), posixpath.dirname(here) or ".")

  if here.startswith("api/"):
    markdown = PACKAGE.sub(lambda match: _modules(match[1]), markdown)
  return _outside_code(markdown, lambda text: LINK.sub(rewrite, text))


def _modules(package):
  """A `:::` line for each file of the package that defines something public."""
  folder = ROOT / package.replace(".", "/")
  lines = []
  for file in sorted(folder.rglob("*.py")):
    if re.search(r"^(def|class) [A-Za-z]", file.read_text(), flags=re.MULTILINE):
      module = ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
      lines.append(f"## {module}\n\n::: {module}")
  return "\n\n".join(lines)


def _targets(source, text):
  found = []
  _outside_code(text, lambda part: found.extend(LINK.findall(part)) or part)
  return {_resolve(source, link) for link in found}


def _resolve(source, link):
  return posixpath.normpath(posixpath.join(posixpath.dirname(source), link))


def _page(target):
  """Path below the site's sources of what lies at `target` in the repository."""
  if target in TOP_PAGES:
    return TOP_PAGES[target]
  if target.startswith("docs/") and not target.endswith(".py"):
    return target.removeprefix("docs/")
  return f"repository/{target}.md"


def _outside_code(markdown, change):
  parts = re.split(r"(^```.*?^```+$)", markdown, flags=re.DOTALL | re.MULTILINE)
  return "".join(part if i % 2 else change(part) for i, part in enumerate(parts))


def _show(path):
  if path.is_dir():
    names = sorted(p.name for p in path.iterdir() if not p.name.startswith(("_", ".")))
    return "\n".join(f"- `{name}`" for name in names)
  if path.suffix == ".ipynb":
    cells = json.loads(path.read_text())["cells"]
    return "\n\n".join(_cell(cell["cell_type"], "".join(cell["source"])) for cell in cells)
  return _fenced(path.read_text(), LANGUAGES.get(path.suffix, "text"))


def _cell(kind, source):
  # Headings move a level down: the page has its own title.
  return re.sub(r"^#", "##", source, flags=re.MULTILINE) if kind == "markdown" else _fenced(source)


def _fenced(text, language="python"):
  return f"````{language}\n{text}\n````"
