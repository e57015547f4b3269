"""Record the counts of real tokenizers for the samples: needs npm and a network, and is run by hand.

    python -m tests.token_counts.record

Tokenizers whose vocabulary comes with their package are used: that of Claude 2 (in `anthropic` 0.38), those of
OpenAI (`js-tiktoken`), Llama 3 and Mistral. Newer tokenizers of Anthropic are not public.
"""

import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from .samples import samples

COUNTS = Path(__file__).with_name("counts.json")

_NPM = ("js-tiktoken@1.0.21", "llama3-tokenizer-js@1.2.0", "mistral-tokenizer-js@1.0.0")
_SCRIPT = """
import { readFileSync } from "fs";
import { getEncoding } from "js-tiktoken";
import llama3 from "llama3-tokenizer-js";
import mistral from "mistral-tokenizer-js";
const texts = JSON.parse(readFileSync(0, "utf8"));
const count = {};
for (const name of ["cl100k_base", "o200k_base"]) {
  const encoding = getEncoding(name);
  count[name] = (text) => encoding.encode(text, [], []).length;
}
count.llama3 = (text) => llama3.encode(text, { bos: false, eos: false }).length;
count.mistral = (text) => mistral.encode(text, false, false).length;
const counts = {};
for (const [name, text] of Object.entries(texts)) {
  counts[name] = Object.fromEntries(Object.entries(count).map(([of, f]) => [of, f(text)]));
}
console.log(JSON.stringify(counts));
"""
_CLAUDE = """
import json, sys, tokenizers
tokenizer = tokenizers.Tokenizer.from_file(sys.argv[1])
print(json.dumps({name: len(tokenizer.encode(text).ids) for name, text in json.load(sys.stdin).items()}))
"""


def main() -> None:
    """Write `counts.json`."""
    texts = samples()
    with tempfile.TemporaryDirectory() as folder:
        counts: dict[str, dict[str, int]] = _count_by_node(Path(folder), json.dumps(texts))
        for name, tokens in _count_by_claude(Path(folder), json.dumps(texts)).items():
            counts[name]["claude2"] = tokens
    COUNTS.write_text(json.dumps(counts, indent=1, sort_keys=True) + "\n")


def _count_by_node(folder: Path, texts: str) -> dict[str, dict[str, int]]:
    subprocess.run(["npm", "install", "--silent", "--prefix", str(folder), *_NPM], check=True)
    script = folder / "count.mjs"
    script.write_text(_SCRIPT)
    done = subprocess.run(["node", str(script)], input=texts, capture_output=True, text=True, check=True)
    counts: dict[str, dict[str, int]] = json.loads(done.stdout)
    return counts


def _count_by_claude(folder: Path, texts: str) -> dict[str, int]:
    python = folder / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", str(folder / "venv")], check=True)
    pip = [str(python), "-m", "pip", "-q"]
    subprocess.run([*pip, "install", "tokenizers==0.20.3"], check=True)
    subprocess.run([*pip, "download", "--no-deps", "-d", str(folder), "anthropic==0.38.0"], check=True)
    with zipfile.ZipFile(next(folder.glob("anthropic-*.whl"))) as wheel:
        file = wheel.extract("anthropic/tokenizer.json", folder)
    command = [str(python), "-c", _CLAUDE, file]
    done = subprocess.run(command, input=texts, capture_output=True, text=True, check=True)
    counts: dict[str, int] = json.loads(done.stdout)
    return counts


if __name__ == "__main__":
    main()
