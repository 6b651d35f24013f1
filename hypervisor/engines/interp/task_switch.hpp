// Hardware task switches (SDM 3A chapter 7). Not available in IA-32e mode.
#pragma once

#include <cstdint>

#include "engines/interp/segments.hpp"

namespace strata::interp {

/// What leads to another task; it decides about busy bits, NT and the link back (SDM 3A table 7-2).
enum class TaskSource : std::uint8_t { jump, call, iret, event };

/// What the old task is left with and the new one is given.
struct TaskRequest {
  TaskSource source = TaskSource::jump;
  std::uint64_t return_ip = 0;  ///< saved in the old task
  std::uint64_t flags = 0;      ///< likewise
  std::uint32_t external = 0;   ///< EXT bit of error codes
  bool has_error = false;       ///< push `error` on the new task's stack
  std::uint32_t error = 0;
};

/// Switches to the task whose TSS `selector` names. Descriptor problems are `vector` (#GP, or #TS
/// for IRET); what goes wrong once the new task's registers are in is left pending in
/// Core::exception, to be raised in the new task, and the outcome is `done`.
Outcome switch_task(Core& core, std::uint16_t selector, const TaskRequest& request);

/// IRET with NT set: back to the task that the TSS links to.
Outcome return_to_task(Core& core, std::uint64_t return_ip);

}  // namespace strata::interp
