# The commands of this repository. Each is a line here; what it does is in tests/.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

help: ## Say what there is
	@awk -F ':.*## ' '/^[a-z][a-z-]*:.*## / { printf "%-18s%s\n", $$1, $$2 }' Makefile

preflight: ## Check this machine, and install the Debian packages that are missing
	@tests/preflight

test: ## Everything that CI checks (STAGES="format chart": only these)
	@tests/check $(STAGES)

generated: ## Write what is generated from the sources: CRDs, the chart as rendered
	@tests/generated

cluster-up: ## Bring up a Kubernetes of this checkout's own (CLUSTER_FLAGS=--egress: with a way out)
	@tests/cluster/cluster.sh up $(CLUSTER_FLAGS)

cluster-down: ## Take it away, and all that it left
	@tests/cluster/cluster.sh down

sqlx: ## Write .sqlx/ anew, after a change to a query or a migration
	@tests/sqlx

bench-controller: ## Measure the controller beside Kubernetes' own for Jobs (N=1000: so many of each; POLICY=off: without the chart's policy)
	@tests/bench/run bench-controller $(N) $(if $(filter off,$(POLICY)),without-policy)

bench-ledger: ## Measure the ledger beside bare Postgres (SCALE=10: ten million runs; ONLY="events upserts": these parts)
	@tests/bench/run bench-ledger $(or $(SCALE),1) $(ONLY)

bench-git: ## Measure reports and what they are made of beside the git command
	@tests/bench/git/run

conformance: ## Hold reports against git on real clones (REPOS=dir: the folder that they are in)
	@REPOS="$(abspath $(REPOS))" tests/git/conformance

demo: ## Watch three runs go through a Kubernetes (RUN=my-run.yaml: apply that one)
	@tests/demo/up $(if $(RUN),"$(RUN)")

demo-down: ## Take the demo away
	@tests/demo/down

.PHONY: help preflight test sqlx generated bench-controller bench-git bench-ledger conformance cluster-up cluster-down demo demo-down
