# The one door. Everything that continuous integration does is a target here.

SHELL := /bin/sh
CARGO ?= cargo
# The lock file is the truth where nobody is there to look at a change of it.
LOCKED := $(if $(CI),--locked)
# How many random sessions the differential tester plays, and the seed of the first.
N ?= 2000
SEED ?= 1
SOAK_SECONDS ?= 300
CHECKS ?= 200000

.DEFAULT_GOAL := help
.PHONY: help demo test lint fmt differential seeded-bugs soak causal regress reads bench fuzz doc deny

help: ## Show what there is to make
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-14s %s\n", $$1, $$2}' Makefile

demo: ## A throw-away PostgreSQL primary with two replicas, the ambassador in front; Ctrl-C ends all
	@scripts/demo

test: ## All tests, against real PostgreSQL servers
	@scripts/drivers && bindir=$$(scripts/setup --tls) && PG_BINDIR="$$bindir" $(CARGO) test $(LOCKED)

lint: ## Formatting, clippy, documentation, licences and advisories
	$(CARGO) fmt --check
	$(CARGO) fmt --check --manifest-path fuzz/Cargo.toml
	$(CARGO) clippy --all-targets $(LOCKED) -- -D warnings
	$(CARGO) check --manifest-path fuzz/Cargo.toml --target-dir $${CARGO_TARGET_DIR:-target} $(LOCKED)
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --no-deps --document-private-items $(LOCKED)
	@$(MAKE) --no-print-directory deny

deny:
	@if $(CARGO) deny --version >/dev/null 2>&1; then \
		$(CARGO) deny check; \
	else \
		echo "cargo-deny is not installed: licences, advisories and bans were NOT checked (cargo install cargo-deny)"; \
	fi

fmt: ## Format the code
	$(CARGO) fmt

differential: ## Random sessions, direct and through the ambassador: N=2000 of them, from SEED=1
	@bindir=$$(scripts/setup) && PG_BINDIR="$$bindir" DIFFERENTIAL_SESSIONS=$(N) DIFFERENTIAL_SEED=$(SEED) \
		$(CARGO) test $(LOCKED) --test behaviour -- --nocapture \
		random_sessions_cannot_tell_the_ambassador_from_the_server

seeded-bugs: ## Judge the judge: bugs that the differential tester must find, one after the other
	@scripts/seeded-bugs

soak: ## Many clients with state of their own on few servers, for SOAK_SECONDS=300
	@bindir=$$(scripts/setup) && PG_BINDIR="$$bindir" SOAK_SECONDS=$(SOAK_SECONDS) \
		$(CARGO) test $(LOCKED) --test behaviour -- --nocapture soak

causal: ## Reads that never go back in time, on replicas that lag, pause and are promoted: CHECKS=200000 of them
	@bindir=$$(scripts/setup) && PG_BINDIR="$$bindir" CAUSAL_CHECKS=$(CHECKS) \
		$(CARGO) test $(LOCKED) --test behaviour -- --nocapture causal::

regress: ## PostgreSQL's own regression tests, direct and through the ambassador
	@tests/regress/run

reads: ## The truth about what is called a read: PostgreSQL's own regression tests, each statement also on a standby
	@tests/regress/reads

bench: ## Compare with direct connections and, where it is installed, PgBouncer
	@bindir=$$(scripts/setup) && PG_BINDIR="$$bindir" benches/run

fuzz: ## Feed random bytes to the protocol's readers
	@fuzz/run

doc: ## The documentation of the code, in target/doc
	$(CARGO) doc --no-deps --document-private-items $(LOCKED)
