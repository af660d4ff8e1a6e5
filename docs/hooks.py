"""Gives the site the paths of the repository: a relative link leads to the same file there and on GitHub."""

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

# Files outside of docs/ that pages link to.
LINKED = (
    *("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "benchmarks/README.md"),
    *("examples/README.md", "examples/*.ipynb", "examples/scorers/*.py"),
    *("zoo/emoji/README.md", "zoo/emoji/*.png"),
)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Names files of docs/ as seen from the repository, and adds those that they link to."""
    root = Path(config.config_file_path).parent
    linked = [path.relative_to(root).as_posix() for pattern in LINKED for path in sorted(root.glob(pattern))]
    own = {file.src_uri: file for file in files if file.src_dir == config.docs_dir}
    for file in own.values():
        files.remove(file)
    for name in linked:
        files.append(File.generated(config, name, abs_src_path=str(root / name)))
    for name, file in own.items():
        moved = File.generated(
            config, f"docs/{name}", abs_src_path=str(root / "docs" / name), inclusion=file.inclusion
        )
        moved.dest_uri = file.dest_uri
        files.append(moved)
    return files
