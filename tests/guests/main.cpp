// The guest's start and its prompt.
#include "boot/machine_layout.hpp"
#include "checks.hpp"
#include "console.hpp"
#include "cpu.hpp"
#include "power.hpp"
#include "traps.hpp"

namespace guest {
namespace {

namespace layout = strata::boot::layout;

/// hvm_start_info, version 1 (Xen, public/arch-x86/hvm/start_info.h).
struct StartInfo {
  std::uint32_t magic, version, flags, module_count;
  std::uint64_t modules, cmdline, rsdp, memory_map;
  std::uint32_t memory_map_entries, reserved;
};
struct MapEntry {
  std::uint64_t start, bytes;
  std::uint32_t type, reserved;
};
struct Module {
  std::uint64_t start, bytes, cmdline, reserved;
};

void reset() {
  out8(layout::kResetPort, layout::kResetValue);
  print("reset: nothing happened\n");
}

void show_memory(const StartInfo& info) {
  const auto* map = reinterpret_cast<const MapEntry*>(info.memory_map);
  std::uint64_t total = 0;
  for (std::uint32_t i = 0; i < info.memory_map_entries; ++i) {
    print_hex(map[i].start);
    print(" + ");
    print_hex(map[i].bytes);
    print(map[i].type == 1 ? " ram\n" : " reserved\n");
    if (map[i].type == 1) total += map[i].bytes;
  }
  const auto* modules = reinterpret_cast<const Module*>(info.modules);
  for (std::uint32_t i = 0; i < info.module_count; ++i) {
    print("module ");
    print_hex(modules[i].start);
    print(" + ");
    print_hex(modules[i].bytes);
    print("\n");
  }
  print("memory: ");
  print_number(total / 1024);
  print(" KiB\n");
}

/// Whether `word` is one of the words of `text`.
bool has_word(const char* text, const char* word) {
  while (*text != '\0') {
    if (starts_with(text, word)) {
      const char* after = text;
      for (const char* w = word; *w != '\0'; ++w) ++after;
      if (*after == '\0' || *after == ' ') return true;
    }
    while (*text != '\0' && *text != ' ') ++text;
    while (*text == ' ') ++text;
  }
  return false;
}

void read_line(char* line, unsigned bytes) {
  unsigned length = 0;
  for (;;) {
    const char c = get();
    if (c == '\r' || c == '\n') break;
    if ((c == '\b' || c == 0x7F) && length > 0) {
      --length;
      print("\b \b");
    } else if (c >= ' ' && c <= '~' && length + 1 < bytes) {
      line[length++] = c;
      put(c);
    }
  }
  line[length] = '\0';
  print("\n");
}

void obey(const char* line, const StartInfo& info) {
  if (equal(line, "help")) {
    print("help  mem  echo TEXT  check  poweroff  reset  crash\n");
  } else if (equal(line, "mem")) {
    show_memory(info);
  } else if (starts_with(line, "echo ")) {
    print(line + 5);
    print("\n");
  } else if (equal(line, "check")) {
    run_checks("");
  } else if (equal(line, "poweroff")) {
    power_off();
  } else if (equal(line, "reset")) {
    reset();
  } else if (equal(line, "crash")) {
    triple_fault();
  } else if (*line != '\0') {
    print("unknown command; try help\n");
  }
}

}  // namespace

extern "C" void guest_main(const StartInfo* info) {
  console_init();
  traps_init();
  print("strata guest\n");
  if (info->magic != 0x336EC578 || info->version < 1) {
    print("FAIL start info: no magic, or no memory map\n");
    stop();
  }
  const char* cmdline = info->cmdline != 0 ? reinterpret_cast<const char*>(info->cmdline) : "";
  if (has_word(cmdline, "auto")) {
    show_memory(*info);
    run_checks(cmdline);
    power_off();
  }
  char line[128];
  for (;;) {
    print("guest> ");
    read_line(line, sizeof line);
    obey(line, *info);
  }
}

}  // namespace guest
