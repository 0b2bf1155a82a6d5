# What `cmake --install` puts where, and what `cpack` makes of it: a .deb and a .tar.gz. Nothing that the program needs lies in a
# file of its own (null ensembles and the report's page are inside it), so an installed folder may be moved.
include(GNUInstallDirs)

# The libraries that it was linked with are found again: of several flavours of OpenBLAS the one whose threads are OpenMP's, and
# CUDA's where no ld.so.conf names them. A bundle brings its own.
if(BULKHEAD_BUNDLE)
  set_target_properties(bulkhead PROPERTIES INSTALL_RPATH "$ORIGIN/../lib")
else()
  set_target_properties(bulkhead PROPERTIES INSTALL_RPATH_USE_LINK_PATH ON)
endif()
install(TARGETS bulkhead RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
install(DIRECTORY deploy/configs deploy/slurm DESTINATION ${CMAKE_INSTALL_DATADIR}/bulkhead USE_SOURCE_PERMISSIONS)
install(FILES README.md CHANGELOG.md LICENSE DESTINATION ${CMAKE_INSTALL_DOCDIR})
install(DIRECTORY docs DESTINATION ${CMAKE_INSTALL_DOCDIR} FILES_MATCHING PATTERN "*.md" PATTERN "*.svg")
find_package(Python3 COMPONENTS Interpreter)
if(Python3_Interpreter_FOUND)
  set(documents ${CMAKE_BINARY_DIR}/documents)
  add_custom_command(OUTPUT ${documents}/man1/bulkhead.1.gz DEPENDS bulkhead ${CMAKE_SOURCE_DIR}/docs/generate.py
    COMMAND ${CMAKE_COMMAND} -E rm -rf ${documents}
    COMMAND ${Python3_EXECUTABLE} -B ${CMAKE_SOURCE_DIR}/docs/generate.py $<TARGET_FILE:bulkhead> install ${documents} VERBATIM)
  add_custom_target(documents ALL DEPENDS ${documents}/man1/bulkhead.1.gz)
  install(DIRECTORY ${documents}/man1 ${documents}/man5 DESTINATION ${CMAKE_INSTALL_MANDIR})
  install(FILES ${documents}/completion/bulkhead DESTINATION ${CMAKE_INSTALL_DATADIR}/bash-completion/completions)
  install(FILES ${documents}/completion/_bulkhead DESTINATION ${CMAKE_INSTALL_DATADIR}/zsh/site-functions COMPONENT plain)
  install(FILES ${documents}/completion/_bulkhead DESTINATION ${CMAKE_INSTALL_DATADIR}/zsh/vendor-completions
    COMPONENT debian EXCLUDE_FROM_ALL)
else()
  message(STATUS "no man pages and no completion: python3 makes them, and is missing")
endif()
# For `module use PREFIX/share/modulefiles`; a package in /usr has no use for them.
foreach(suffix IN ITEMS "" .lua)
  install(FILES deploy/modulefiles/bulkhead${suffix} RENAME ${PROJECT_VERSION}${suffix}
    DESTINATION ${CMAKE_INSTALL_DATADIR}/modulefiles/bulkhead COMPONENT plain)
endforeach()

add_custom_target(uninstall COMMAND ${CMAKE_COMMAND} -P ${CMAKE_SOURCE_DIR}/cmake/uninstall.cmake WORKING_DIRECTORY ${CMAKE_BINARY_DIR})

set(CPACK_GENERATOR DEB TGZ)
set(CPACK_PACKAGE_NAME bulkhead)
set(CPACK_PACKAGE_CONTACT "Bulkhead maintainers <maintainers@users.noreply.r-seed-2319f627.example>")
set(CPACK_PACKAGE_VENDOR "Bulkhead")
set(CPACK_RESOURCE_FILE_LICENSE ${CMAKE_SOURCE_DIR}/LICENSE)
set(CPACK_STRIP_FILES ON)
set(CPACK_PACKAGE_CHECKSUM SHA256)
string(TOLOWER "bulkhead-${PROJECT_VERSION}-${CMAKE_SYSTEM_NAME}-${CMAKE_SYSTEM_PROCESSOR}" CPACK_PACKAGE_FILE_NAME)
if(BULKHEAD_HAS_CUDA)
  string(APPEND CPACK_PACKAGE_FILE_NAME -cuda)
endif()
if(BULKHEAD_NATIVE) # runs on processors like this one only: to try, not to hand out
  string(APPEND CPACK_PACKAGE_FILE_NAME -native)
endif()
# One .deb: what any installation has, and its own; the archive has what a plain installation has.
set(CPACK_DEB_COMPONENT_INSTALL ON)
set(CPACK_COMPONENTS_ALL Unspecified debian)
set(CPACK_COMPONENTS_GROUPING ALL_COMPONENTS_IN_ONE)
string(TIMESTAMP now "%a, %d %b %Y %H:%M:%S +0000" UTC)
configure_file(deploy/debian/changelog.in ${CMAKE_BINARY_DIR}/debian/changelog @ONLY)
execute_process(COMMAND gzip -9nf changelog WORKING_DIRECTORY ${CMAKE_BINARY_DIR}/debian COMMAND_ERROR_IS_FATAL ANY)
install(FILES deploy/debian/copyright ${CMAKE_BINARY_DIR}/debian/changelog.gz DESTINATION ${CMAKE_INSTALL_DOCDIR}
  COMPONENT debian EXCLUDE_FROM_ALL)
install(FILES deploy/debian/lintian-overrides DESTINATION ${CMAKE_INSTALL_DATADIR}/lintian/overrides RENAME bulkhead
  COMPONENT debian EXCLUDE_FROM_ALL)
set(CPACK_DEBIAN_PACKAGE_SECTION science)
set(CPACK_DEBIAN_PACKAGE_SHLIBDEPS ON)
set(CPACK_DEBIAN_PACKAGE_DEPENDS "openmpi-bin, libopenblas0-openmp") # mpirun; the flavour of OpenBLAS
set(CPACK_PACKAGE_DESCRIPTION_SUMMARY "pretrains transformers and watches the spectra of their attention heads")
set(CPACK_PACKAGE_DESCRIPTION "Multi-head and latent attention over MPI; one SQLite file of spectra a run.") # CPack 3.25 wants one line
include(CPack)
