// The subcommands of the program. Each adds itself to the CLI and runs when chosen.
#pragma once

#include <CLI/CLI.hpp>

namespace strata::cli {

/// What a wrong option or file ends the program with.
inline constexpr int kUsageError = 2;

/// Adds `strata run`; when it is chosen, its exit code is stored in `exit_code`.
void add_run_command(CLI::App& app, int& exit_code);

/// Adds `strata replay`; likewise.
void add_replay_command(CLI::App& app, int& exit_code);

/// What `strata --version` prints: version, engines, backends, and what combines.
[[nodiscard]] std::string version_text();

}  // namespace strata::cli
