# SPDX-License-Identifier: MIT
# Thin over CMake: every target below says in one line what it runs. `make help` lists them.

JOBS     ?= $(shell nproc)
PREFIX   ?= /usr/local
RUN_ARGS ?=
FUZZ_SECONDS ?= 60

.PHONY: all run dev-cluster stop-cluster test test-clusters unit quick sim marks fmt lint coverage fuzz mutants soak docs install clean deps deps-build help
.DEFAULT_GOAL := all

all: deps-build ## build into build/, programs in build/bin/
	@cmake --preset release >/dev/null
	@cmake --build build -j$(JOBS)

run: all ## build, then start one node in the foreground (RUN_ARGS="--memory 2GiB")
	@exec build/bin/distkv-server $(RUN_ARGS)

dev-cluster: all ## three nodes on this machine: 127.0.0.1:8080, 8081, 8082; data in dev-cluster/
	@tools/dev-cluster start

stop-cluster: ## end them
	@tools/dev-cluster stop

test: deps ## all that must hold of a node, from units to clients and sanitizers: about 10 minutes on 2 cores
	@tools/run-tests node

test-clusters: deps ## and all that must hold of clusters: about 6 minutes more
	@tools/run-tests clusters

quick: deps ## unit tests and checks of the source only: about a minute
	@tools/run-tests quick

unit: all ## unit tests of the release build
	@ctest --test-dir build --output-on-failure -j$(JOBS)

sim: all ## simulated histories of a node: 200 cheap seeds, 50 with every fault: about a minute
	@tools/run-tests sim

marks: all ## which rare branches of src/lsm and src/io the seeds pass; the rest must be argued
	@tools/run-tests marks

fmt: ## format all C sources, and list the marks that are new
	@git ls-files '*.c' '*.h' | xargs clang-format -i
	@tools/tidy --add-sites

# And what was built, if anything was.
lint: deps ## formatting, shell scripts, layers, forbidden symbols
	@tools/lint $(if $(wildcard build/CMakeCache.txt),build)

coverage: deps ## line coverage of src/ by the tests, at least 85 %
	@tools/coverage

fuzz: deps ## run every fuzz target for FUZZ_SECONDS seconds
	@tools/fuzz $(FUZZ_SECONDS)

mutants: deps ## break the program on purpose, mistake by mistake: the simulation must notice each; 5 minutes or more on 2 cores
	@tools/mutants

soak: deps all ## the long tests: 50 power cuts, long loads
	@tools/run-tests soak

docs: all ## write docs/configuration.md anew from the option table
	@tools/generate-docs

install: all ## install programs, library, unit and manual page under PREFIX
	@cmake -S . -B build -DCMAKE_INSTALL_PREFIX=$(PREFIX) >/dev/null
	@cmake --install build

clean: ## remove the build directories
	@rm -rf build build-*

deps-build:
	@tools/install-deps build

deps: ## install the Debian packages that are missing
	@tools/install-deps

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12
