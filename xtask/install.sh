# What ./test and ./demo share: installing what is missing on a bare Debian 12 or later. Sourced, not
# run; the sourcing script is in the root of the repository and has set PROGRAM, its own name.
# shellcheck shell=bash

# Without a C compiler and libpcap nothing builds; the other programs are what tests compare with
# and what the demonstration shows.
DEBIAN_PACKAGES=(
    build-essential ca-certificates cmake curl e2fsprogs ethtool git gzip iproute2 jq kmod
    libpcap-dev lz4 openssl pkg-config procps python3 python3-venv tcpdump tshark valgrind
    zstd
)
# 2 MiB pages, enough for the arenas of the tests.
HUGEPAGES_MIN=64

say() { printf '%s: %s\n' "$PROGRAM" "$*"; }
fail() { printf '%s: %s\n' "$PROGRAM" "$*" >&2; exit 1; }

install_debian_packages() {
    local package missing=()
    for package in "${DEBIAN_PACKAGES[@]}"; do
        [[ $(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) == installed ]] ||
            missing+=("$package")
    done
    ((${#missing[@]})) || return 0
    ((EUID == 0)) || fail "these packages are missing, and only root can install them:" \
        "apt-get install ${missing[*]}"
    say "installing ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    # Else tshark asks whether everyone may capture.
    if command -v debconf-set-selections >/dev/null; then
        debconf-set-selections <<<'wireshark-common wireshark-common/install-setuid boolean false'
    fi
    apt-get update -q
    apt-get install -y -q --no-install-recommends "${missing[@]}"
}

# Whether there is a cargo at least as new as the version given.
have_cargo() {
    local found
    found=$(cargo --version 2>/dev/null | cut -d ' ' -f 2) || return 1
    [[ -n $found && $(printf '%s\n' "$1" "$found" | sort -V | head -n 1) == "$1" ]]
}

# Debian 12's own Rust is older than the workspace's `rust-version`, so only rustup will do.
find_rust() {
    local home=${CARGO_HOME:-$HOME/.cargo} wanted
    wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
    [[ -d $home/bin ]] && PATH=$home/bin:$PATH
    if ! have_cargo "$wanted" && ! command -v rustup >/dev/null && ((EUID == 0)) &&
        apt-cache policy rustup 2>/dev/null | grep -q 'Candidate: [0-9]'; then
        say "installing rustup"
        DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends rustup ||
            say "rustup cannot be installed from Debian"
    fi
    if ! have_cargo "$wanted" && ! command -v rustup >/dev/null; then
        local installer
        installer=$(mktemp)
        say "installing a Rust toolchain from https://rustup.rs"
        if curl --proto '=https' --tlsv1.2 -sSf -o "$installer" https://sh.rustup.rs; then
            sh "$installer" -y --quiet --profile minimal --component clippy,rustfmt || true
        fi
        rm -f "$installer"
        PATH=$home/bin:$PATH
    fi
    if command -v rustup >/dev/null && ! rustup show active-toolchain >/dev/null 2>&1; then
        rustup default stable
    fi
    export PATH
    have_cargo "$wanted" || fail "there is no cargo $wanted or later, and none could be" \
        "installed. Install Rust from https://rustup.rs, with clippy and rustfmt (or run" \
        "\`rustup update stable\`), and see that \`cargo --version\` works in this shell"
    say "$(cargo --version), the workspace asks for $wanted"
}

# Without them the arena falls back to ordinary pages and says so.
reserve_hugepages() {
    local file=/proc/sys/vm/nr_hugepages pages
    [[ -r $file ]] || { say "this kernel has no hugepages"; return 0; }
    pages=$(<$file)
    if ((pages < HUGEPAGES_MIN)) && [[ -w $file ]]; then
        # The kernel gives fewer than asked, or refuses, when memory is in pieces.
        printf '%s\n' "$HUGEPAGES_MIN" 2>/dev/null >$file || true
        pages=$(<$file)
    fi
    say "$pages hugepages of $(awk '/^Hugepagesize/ {print $2, $3}' /proc/meminfo)," \
        "at least $HUGEPAGES_MIN wanted"
}
