// The end of the machine.
#pragma once

namespace guest {

/// ACPI soft-off; returns when the machine ignores it.
void power_off();

}  // namespace guest
