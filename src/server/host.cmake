# SPDX-License-Identifier: MIT
# host: the program around the shards. Included by CMakeLists.txt of this folder; the simulated
# link never sees these files.
pkg_check_modules(MICROHTTPD REQUIRED IMPORTED_TARGET libmicrohttpd)
pkg_check_modules(JANSSON REQUIRED IMPORTED_TARGET jansson)
pkg_check_modules(INIH REQUIRED IMPORTED_TARGET inih)
pkg_check_modules(SYSTEMD REQUIRED IMPORTED_TARGET libsystemd)

# Options alone, for their tests and the fuzzer: needs nothing of the server.
add_library(distkv_host_config STATIC config.c host_config.c)
target_link_libraries(distkv_host_config PUBLIC distkv_base PRIVATE PkgConfig::INIH)

add_library(distkv_host STATIC host_admin.c host_metrics.c host_notify.c)
target_link_libraries(distkv_host PUBLIC distkv_server
  PRIVATE PkgConfig::MICROHTTPD PkgConfig::JANSSON PkgConfig::SYSTEMD)

add_executable(distkv-server host_main.c)
target_link_libraries(distkv-server PRIVATE distkv_host distkv_host_config distkv_server distkv_lsm
  distkv_io_ring distkv_mem distkv_fault_none Threads::Threads)
install(TARGETS distkv-server RUNTIME DESTINATION ${CMAKE_INSTALL_SBINDIR})
