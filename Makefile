# setup    what apt must bring, and .venv          test   every check there is
# demo     a live call, recorded, copied, shown    bench  how fast it is
# install  into PREFIX, with its units, as root       fuzz   every parser, for FUZZ_SECONDS
.PHONY: setup packages demo test fuzz bench install units
SHELL := /bin/bash

PREFIX ?= /opt/spanvault
LIBDIR ?= /usr/local/lib

# To build systemd-python, which has no wheel; then what demo and tests place calls with.
PACKAGES := python3 python3-venv python3-dev gcc pkg-config libsystemd-dev \
	iproute2 ethtool sip-tester softhsm2 tshark tcpdump ffmpeg systemd systemd-container \
	xfsprogs btrfs-progs

# Debian's own Python where it will do: the daemons run as users who cannot look into /root.
FIND_PYTHON := for python in /usr/bin/python3 python3; do \
	"$$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' \
	2>/dev/null && break; python=; done; \
	test -n "$$python" || { echo "Python 3.11 or newer with venv is needed" >&2; exit 1; }

setup: packages .venv/.ready

packages:
	@command -v dpkg-query >/dev/null || { echo "no Debian: see to $(PACKAGES)"; exit 0; }; \
	missing=$$(for name in $(PACKAGES); do dpkg-query -W -f '$${Status}' $$name 2>/dev/null \
		| grep -q ' installed$$' || echo $$name; done); \
	test -n "$$missing" || exit 0; \
	if [ "$$(id -u)" != 0 ]; then \
		echo "missing, and only root can install them:" $$missing; exit 0; fi; \
	export DEBIAN_FRONTEND=noninteractive; \
	apt-get -q -o DPkg::Lock::Timeout=300 update && \
	apt-get -q -o DPkg::Lock::Timeout=300 install -y --no-install-recommends $$missing

.venv/.ready: requirements.txt pyproject.toml | packages
	@$(FIND_PYTHON); test -x .venv/bin/python || "$$python" -m venv .venv
	.venv/bin/pip install -q --disable-pip-version-check -r requirements.txt
	.venv/bin/pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

demo: setup
	@.venv/bin/python tests/e2e/demo.py

test: setup
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports
	.venv/bin/pytest --numprocesses=auto --maxprocesses=4 --dist=loadfile --durations=15

FUZZ_SECONDS ?= 300

fuzz: setup
	.venv/bin/pip install -q --disable-pip-version-check atheris==3.0.0
	@code=0; \
	nice -n 10 .venv/bin/python -m tests.fuzz.product --seconds $$(($(FUZZ_SECONDS) / 6)) || code=1; \
	nice -n 10 .venv/bin/python -m tests.fuzz --seconds $$(($(FUZZ_SECONDS) * 5 / 6)) || code=1; \
	exit $$code

# Each goes on where one before it missed what is wanted (live and vault say so by their status).
# vault runs ingest, too.
BENCHES := engine vault beside rows reindex replay replication live memory abuse signalling

bench: setup
	@code=0; for name in $(BENCHES); do \
		echo "== bench/$$name.py"; .venv/bin/python bench/$$name.py || code=1; echo; \
	done; exit $$code

install: packages units
	@$(FIND_PYTHON); test -x $(PREFIX)/bin/python || "$$python" -m venv $(PREFIX)
	$(PREFIX)/bin/pip install -q --disable-pip-version-check -c requirements.txt '.[explain]'
	systemd-sysusers $(LIBDIR)/sysusers.d/spanvault.conf
	systemd-tmpfiles --create $(LIBDIR)/tmpfiles.d/spanvault.conf
	systemctl daemon-reload
	@echo "now: systemctl enable --now spanvault.target spanvault-capture@INTERFACE"

units:
	install -d $(DESTDIR)$(LIBDIR)/systemd/system
	for unit in systemd/*.service systemd/*.target; do \
		sed 's|/opt/spanvault|$(PREFIX)|' "$$unit" \
		> "$(DESTDIR)$(LIBDIR)/systemd/system/$${unit#systemd/}" || exit; done
	install -Dm644 systemd/spanvault.sysusers $(DESTDIR)$(LIBDIR)/sysusers.d/spanvault.conf
	install -Dm644 systemd/spanvault.tmpfiles $(DESTDIR)$(LIBDIR)/tmpfiles.d/spanvault.conf
	install -Dm644 systemd/spanvault.preset \
		$(DESTDIR)$(LIBDIR)/systemd/system-preset/90-spanvault.preset
