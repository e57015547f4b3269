# `.ci/run` is lint, types, bench-quick, chaos-quick, money-quick and test. Needs Python 3.11 or newer and nothing else.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-cold test-quick stress fuzz fuzz-streams ending soak bench bench-quick chaos chaos-quick money money-quick conversations mcp-servers token-counts proofs lint types mypy pyright lock prices record-histories clean

demo: .venv/ready            ## The example: server, UI, worker, runs, a kill -9, an approval
	$(BIN)/python examples/support_desk/demo.py $(if $(KEEP),--keep)

# Four at a time, whatever the machine: tests on a server wait two thirds of their time. The longest come first.
test: .venv/ready            ## The tests, against the real server; `test-cold` and `stress` are the long ones
	$(BIN)/pytest -q -m "not cold" -n 4 --dist worksteal tests/process tests/workflow tests/replay tests/mcp tests/unit
	$(BIN)/pytest -q -m "not cold" -n 2 tests/fuzz  # apart: what else is imported changes the examples

test-cold: .venv/ready       ## Teams and sessions once more, with nothing cached: every workflow task a replay
	$(BIN)/pytest -q -m cold

test-quick: .venv/ready      ## The unit tests only
	$(BIN)/pytest -q tests/unit

stress: .venv/ready          ## 20 runs of 100 sub-agents, one budget, kill -9; 3,000 steps, 1,000 turns (20 minutes)
	FAMILY_RUNS=20 FAMILY_CHILDREN=100 $(BIN)/pytest -q tests/process/test_shared_budget.py
	LONG_STEPS=3000 LONG_TURNS=1000 $(BIN)/pytest -q tests/workflow/test_history.py \
		tests/workflow/test_sessions.py::test_long_session_has_small_histories

fuzz: .venv/ready            ## The state machines and the fuzzers, with many more examples (some 20 minutes)
	FUZZ_TIMES=40 $(BIN)/pytest -q -n 2 tests/fuzz
	FUZZ_TIMES=10 $(BIN)/pytest -q tests/workflow/test_broken_input.py tests/workflow/test_broken_answers.py

fuzz-streams: .venv/ready    ## 100,000 broken streams, of all adapters together (a quarter of an hour)
	FUZZ_COUNT=20000 $(BIN)/pytest -q -n 2 tests/fuzz/test_any_stream.py

ending: .venv/ready          ## Seconds from a stop, a cancel or a deadline to the end, at each moment: a quiet machine
	$(BIN)/python -m proofs.ending

soak: .venv/ready            ## Two hours of a steady load, or SOAK_MINUTES=...; fails when something grows
	$(BIN)/pip install -q --disable-pip-version-check -r proofs/benchmarks/requirements.txt
	$(BIN)/python -m proofs.soak run --minutes $(or $(SOAK_MINUTES),120) --rate $(or $(SOAK_RATE),1)

bench: .venv/ready           ## Every benchmark beside the peers, then docs/benchmarks: an hour, a quiet machine
	$(BIN)/pip install -q --disable-pip-version-check -r proofs/benchmarks/requirements.txt
	$(BIN)/python -m proofs.benchmarks run --all
	$(BIN)/python -m proofs.benchmarks report

bench-quick: .venv/ready     ## Counts and bytes of Perdure beside bare Temporal; never a time
	$(BIN)/python -m proofs.benchmarks quick

chaos: .venv/ready           ## 200 public tasks under each kind of fault, then docs/chaos: half an hour
	$(BIN)/python -m proofs.chaos run
	$(BIN)/python -m proofs.chaos report

chaos-quick: .venv/ready     ## Some of the tasks, faults of several kinds together: at most three minutes
	$(BIN)/python -m proofs.chaos quick

money: .venv/ready           ## 500 trees with limits under kills; the provider's own bill is the judge (quarter of an hour)
	$(BIN)/python -m proofs.money run

money-quick: .venv/ready     ## Some of the trees, two kills of a worker and one of the server: 25 seconds
	$(BIN)/python -m proofs.money quick

conversations: .venv/ready   ## Twenty public tasks in a session, in a window of 8,000 tokens, then docs/conversations (ten minutes)
	$(BIN)/python -m proofs.conversations run
	$(BIN)/python -m proofs.conversations report

# In an environment of their own: npm installs them below proofs/mcp, and nothing of them is shipped.
MCP_SERVERS := server-everything@2026.8.31 server-filesystem@2026.8.31
mcp-servers: .venv/ready     ## MCP servers of others, from npm, killed in the midst of calls (a minute): needs npm
	npm install --silent --no-fund --no-audit --prefix proofs/mcp/.npm $(addprefix @modelcontextprotocol/,$(MCP_SERVERS))
	$(BIN)/python -m proofs.mcp

# One after the other: each measures, so none may share the machine. A failure does not stop the rest.
proofs: .venv/ready          ## Every heavy suite: four hours, two of them the soak; SOAK_MINUTES=... for another length
	$(MAKE) --keep-going --jobs=1 test-cold fuzz stress ending chaos money conversations bench soak

lint: .venv/ready            ## Style, and who may import whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: mypy pyright          ## mypy by package name, pyright by real path

mypy: .venv/ready
	$(BIN)/mypy -p perdure -p tests -p proofs.chaos -p proofs.conversations -p proofs.ending -p proofs.mcp -p proofs.money

pyright: .venv/ready
	$(BIN)/pyright

lock: .venv/ready            ## Resolve the dependencies anew
	$(BIN)/pip install -q uv
	$(BIN)/uv pip compile -q --upgrade --universal --python-version 3.11 --all-extras --group checks \
		--no-header pyproject.toml -o requirements.txt

prices: .venv/ready          ## Generate perdure/prices.json from the pinned genai-prices
	$(BIN)/python -m tests.price_table

token-counts: .venv/ready    ## Record the counts of real tokenizers for the estimates of tokens: needs npm
	$(BIN)/python -m tests.token_counts.record

record-histories: .venv/ready ## Record this version's histories: make record-histories VERSION=unreleased
	$(BIN)/python -m tests.replay.record $(VERSION)

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

.venv/ready: requirements.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Perdure needs Python 3.11 or newer; try: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q --disable-pip-version-check -r requirements.txt
	$(BIN)/pip install -q --disable-pip-version-check --no-deps -e .
	touch $@
