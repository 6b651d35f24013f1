// The guest benchmark suite: one static program that runs as /init of an otherwise empty initramfs,
// and the same on the host. Who started it times the tests by when their lines arrive, for a
// guest's clock is part of what is under test.
//
//   strata_bench_guest [list] [bench=NAME,NAME...] [scale=X]
//
// As /init it finds bench= and scale= in its environment, where the kernel puts what it does not
// know of its command line, and powers off at the end.
#include <fcntl.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/klog.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#include "suite.hpp"

namespace bench {
namespace {

// What the time between two lines costs when nothing happens in between.
std::uint64_t empty(const Scale&) { return 0; }
constexpr Test console_tests[] = {{"empty", "console", empty}};

std::vector<Test> all_tests() {
  std::vector<Test> all;
  for (const auto& tests : {std::span<const Test>(console_tests), integer_tests(), text_tests(),
                            float_tests(), vector_tests(), memory_tests(), os_tests()}) {
    all.insert(all.end(), tests.begin(), tests.end());
  }
  return all;
}

// Out of the machine before the test goes on: a buffered line would be transmitted during the test.
void print_line(const std::string& line) {
  const std::string text = line + "\n";
  if (write(STDOUT_FILENO, text.data(), text.size()) < 0) _exit(1);
  tcdrain(STDOUT_FILENO);
}

struct Options {
  std::string names;
  double scale = 1;
  bool list = false;

  void take(std::string_view argument) {
    if (argument == "list") list = true;
    if (argument.starts_with("bench=")) names = argument.substr(6);
    if (argument.starts_with("scale=")) scale = std::strtod(argument.data() + 6, nullptr);
  }
  bool selects(std::string_view name) const {
    return names.empty() || ("," + names + ",").find("," + std::string(name) + ",") != names.npos;
  }
};

Options read_options(int count, char** arguments) {
  Options options;
  if (const char* names = getenv("bench")) options.names = names;
  if (const char* scale = getenv("scale")) options.scale = std::strtod(scale, nullptr);
  for (int i = 1; i < count; ++i) options.take(arguments[i]);
  return options;
}

// exec needs /proc/self/exe, the file test a tmpfs. The kernel's own lines would mix with ours.
void set_up_as_init() {
  klogctl(8, nullptr, 1);
  mkdir("/proc", 0755);
  mkdir("/tmp", 0755);
  mount("proc", "/proc", "proc", 0, nullptr);
  mount("tmpfs", "/tmp", "tmpfs", 0, nullptr);
  set_scratch_directory("/tmp");
}

// A guest of these comparisons has one processor; so does the host's run.
void stay_on_one_processor() {
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(sched_getcpu(), &one);
  sched_setaffinity(0, sizeof one, &one);
}

void run(const Test& test, const Scale& scale) {
  if (test.prepare) test.prepare(scale);
  print_line(std::string("BENCH ") + test.name + " begin");
  const std::uint64_t checksum = test.run(scale);
  char text[32];
  std::snprintf(text, sizeof text, "%016lx", checksum);
  print_line(std::string("BENCH ") + test.name + " end checksum=" + text);
}

// In a process of its own: what one test leaves in the heap would make the next one's forks dearer,
// and a test that dies must not take the rest with it.
void run_apart(const Test& test, const Scale& scale) {
  const pid_t child = fork();
  if (child == 0) {
    run(test, scale);
    _exit(0);
  }
  int status = 0;
  if (child < 0 || waitpid(child, &status, 0) != child || status != 0) {
    print_line(std::string("BENCH ") + test.name + " failed status=" + std::to_string(status));
  }
}

void run_suite(const Options& options) {
  print_line(std::string("BENCH suite begin vector=") + vector_isa());
  stay_on_one_processor();
  for (const Test& test : all_tests()) {
    if (options.selects(test.name)) run_apart(test, Scale(options.scale));
  }
  print_line("BENCH suite end");
}

}  // namespace
}  // namespace bench

int main(int count, char** arguments) {
  // What the exec test starts: nothing but its own start and end.
  if (count > 1 && std::strncmp(arguments[1], "exit=", 5) == 0) return std::atoi(arguments[1] + 5);
  const auto options = bench::read_options(count, arguments);
  if (options.list) {
    for (const auto& test : bench::all_tests()) std::printf("%s\t%s\n", test.name, test.group);
    return 0;
  }
  const bool init = getpid() == 1;
  if (init) bench::set_up_as_init();
  bench::run_suite(options);
  if (init) reboot(RB_POWER_OFF);
  return 0;
}
