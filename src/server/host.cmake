# SPDX-License-Identifier: MIT
# host: the program around the shards. Included by CMakeLists.txt of this folder; the simulated
# link never sees these files.
pkg_check_modules(MICROHTTPD REQUIRED IMPORTED_TARGET libmicrohttpd)
pkg_check_modules(JANSSON REQUIRED IMPORTED_TARGET jansson)
pkg_check_modules(INIH REQUIRED IMPORTED_TARGET inih)
pkg_check_modules(SYSTEMD REQUIRED IMPORTED_TARGET libsystemd)

# Options alone, for their tests and the fuzzer: needs nothing of the server.
add_library(distkv_host_config STATIC config.c glob.c host_config.c number.c)
target_link_libraries(distkv_host_config PUBLIC distkv_base m PRIVATE PkgConfig::INIH)

add_library(distkv_host STATIC host_admin.c host_banner.c host_metrics.c host_notify.c)
target_link_libraries(distkv_host PUBLIC distkv_server
  PRIVATE PkgConfig::MICROHTTPD PkgConfig::JANSSON PkgConfig::SYSTEMD)

# A list, because a test links the same program without its syncs.
set(DISTKV_SERVER_LIBRARIES distkv_host distkv_host_config distkv_server distkv_cluster distkv_raft distkv_proto distkv_lsm
  distkv_io_ring distkv_io distkv_mem distkv_fault_none distkv_base Threads::Threads)
set(DISTKV_SERVER_LIBRARIES ${DISTKV_SERVER_LIBRARIES} CACHE INTERNAL "what distkv-server links")
add_executable(distkv-server host_main.c)
target_link_libraries(distkv-server PRIVATE ${DISTKV_SERVER_LIBRARIES})
install(TARGETS distkv-server RUNTIME DESTINATION ${CMAKE_INSTALL_SBINDIR})

add_custom_command(OUTPUT ${CMAKE_BINARY_DIR}/distkv-server.8
  COMMAND distkv-server --help-man > ${CMAKE_BINARY_DIR}/distkv-server.8
  DEPENDS distkv-server VERBATIM)
add_custom_target(distkv_man ALL DEPENDS ${CMAKE_BINARY_DIR}/distkv-server.8)
install(FILES ${CMAKE_BINARY_DIR}/distkv-server.8 DESTINATION ${CMAKE_INSTALL_MANDIR}/man8)
install(PROGRAMS ${CMAKE_SOURCE_DIR}/tuning/distkv-tune DESTINATION ${CMAKE_INSTALL_SBINDIR})
install(FILES ${CMAKE_SOURCE_DIR}/deploy/distkv.conf DESTINATION ${CMAKE_INSTALL_DATADIR}/distkv)
install(FILES ${CMAKE_SOURCE_DIR}/deploy/systemd/distkv.sysusers DESTINATION lib/sysusers.d
  RENAME distkv.conf)
# The unit names the program's place, which is known only when it is installed.
install(CODE "
  file(READ \"${CMAKE_SOURCE_DIR}/deploy/systemd/distkv.service\" unit)
  string(REPLACE \"/usr/local/sbin\" \"\${CMAKE_INSTALL_PREFIX}/${CMAKE_INSTALL_SBINDIR}\" unit \"\${unit}\")
  file(WRITE \"\$ENV{DESTDIR}\${CMAKE_INSTALL_PREFIX}/lib/systemd/system/distkv.service\" \"\${unit}\")
")
