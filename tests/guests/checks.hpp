#pragma once

namespace guest {

/// Runs every check, prints a line for each and a sum; returns the number that failed.
unsigned run_checks();

}  // namespace guest
