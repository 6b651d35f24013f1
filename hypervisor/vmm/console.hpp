// Where the guest's console ends on the host: the terminal, a file, or nowhere.
#pragma once

#include <termios.h>

#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <thread>

#include "devices/char_stream.hpp"
#include "mmu/expected.hpp"
#include "vmm/vm_config.hpp"

namespace strata::vmm {

/// Owns the host side of the guest's console. For "stdio" the terminal is in raw mode while it
/// lives, and Ctrl-A is the escape: Ctrl-A x quits, Ctrl-A h lists the others. Input that does not
/// come from a terminal is passed on as it is.
class Console final : public devices::CharSink {
 public:
  /// `target`: "stdio", "null" or a file to write to. Error: the file cannot be written.
  [[nodiscard]] static Expected<std::unique_ptr<Console>, ConfigError> open(
      const std::string& target);
  ~Console() override;

  /// Writes what the guest sent; a slow or closed reader loses output, never the guest.
  void put(std::span<const std::uint8_t> bytes) override;
  /// The terminal's, at the time of open().
  [[nodiscard]] devices::TerminalSize size() const noexcept override { return size_; }

  /// Starts passing standard input to `guest`; `quit` is called for the escape. "stdio" only,
  /// else it does nothing. Stopped by stop_input() or the destructor.
  void start_input(devices::CharInput& guest, std::function<void()> quit);
  void stop_input();

 private:
  Console(int output, bool owned, bool input);
  void enter_raw_mode();
  void input_loop(devices::CharInput& guest, const std::function<void()>& quit);
  std::string filter_escapes(std::string_view bytes, const std::function<void()>& quit);
  void offer(devices::CharInput& guest, std::string_view bytes);

  const int output_;
  const bool owned_;
  const bool input_;
  bool terminal_ = false;
  devices::TerminalSize size_;
  bool escaped_ = false;
  std::optional<termios> saved_;
  int wake_ = -1;  ///< eventfd: wakes the input thread
  std::atomic<bool> stop_{false};
  std::thread thread_;
};

}  // namespace strata::vmm
