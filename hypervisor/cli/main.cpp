#include <fmt/format.h>

#include <csignal>
#include <exception>
#include <iostream>

#include "cli/commands.hpp"
#include "vmm/capabilities.hpp"

namespace strata::cli {

std::string version_text() {
  std::string text = fmt::format("strata {}\n", STRATA_VERSION);
  text += fmt::format("backends: {}\n", STRATA_BACKEND_LIST);
  text += "engine  mmu\n";
  for (const vmm::Combination& c : vmm::combinations()) {
    text += fmt::format("{:<7} {} ({})\n", c.engine, c.mmu, c.backend);
  }
  return text;
}

}  // namespace strata::cli

int main(int argc, char** argv) {
  CLI::App app{"Strata: a hypervisor with interchangeable memory backends"};
  app.name("strata");
  app.set_version_flag("--version", strata::cli::version_text());
  app.require_subcommand(1);
  // A write beyond RLIMIT_FSIZE is an error of that write, not the end of the VM.
  std::signal(SIGXFSZ, SIG_IGN);
  int exit_code = 0;
  try {
    strata::cli::add_run_command(app, exit_code);
    strata::cli::add_replay_command(app, exit_code);
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    return app.exit(e) == 0 ? 0 : strata::cli::kUsageError;
  } catch (const std::exception& e) {
    std::cerr << "strata: " << e.what() << '\n';
    return 1;
  }
  return exit_code;
}
