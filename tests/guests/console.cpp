#include "console.hpp"

#include "boot/machine_layout.hpp"
#include "cpu.hpp"

namespace guest {
namespace {

constexpr std::uint16_t kPort = strata::boot::layout::kCom1Port;
constexpr std::uint8_t kReceived = 1U << 0;
constexpr std::uint8_t kTransmitEmpty = 1U << 5;

}  // namespace

void console_init() {
  out8(kPort + 1, 0);     // no interrupts
  out8(kPort + 3, 0x80);  // divisor: 115200 baud
  out8(kPort + 0, 1);
  out8(kPort + 1, 0);
  out8(kPort + 3, 3);  // eight bits, no parity, one stop bit
  out8(kPort + 2, 7);  // FIFOs on and empty
  out8(kPort + 4, 3);  // DTR, RTS
}

void put(char c) {
  if (c == '\n') put('\r');
  while ((in8(kPort + 5) & kTransmitEmpty) == 0) {
  }
  out8(kPort, static_cast<std::uint8_t>(c));
}

void print(const char* text) {
  for (; *text != '\0'; ++text) put(*text);
}

void print_number(std::uint64_t value) {
  char digits[21];
  unsigned at = sizeof digits;
  digits[--at] = '\0';
  do {
    digits[--at] = static_cast<char>('0' + value % 10);
    value /= 10;
  } while (value != 0);
  print(digits + at);
}

void print_hex(std::uint64_t value) {
  print("0x");
  bool started = false;
  for (unsigned shift = 64; shift != 0;) {
    shift -= 4;
    const auto digit = static_cast<unsigned>(value >> shift & 0xF);
    started = started || digit != 0 || shift == 0;
    if (started) put("0123456789abcdef"[digit]);
  }
}

char get() {
  while ((in8(kPort + 5) & kReceived) == 0) asm volatile("pause");
  return static_cast<char>(in8(kPort));
}

bool starts_with(const char* text, const char* prefix) {
  for (; *prefix != '\0'; ++text, ++prefix) {
    if (*text != *prefix) return false;
  }
  return true;
}

bool equal(const char* a, const char* b) {
  while (*a != '\0' && *a == *b) {
    ++a;
    ++b;
  }
  return *a == *b;
}

}  // namespace guest
